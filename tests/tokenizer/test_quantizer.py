import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import paths

from infinity_jax.tokenizer import resize
from infinity_jax.tokenizer.quantizer import (
    accumulate,
    codes_from_bits,
    next_input,
    quantize,
    total_from_bits,
    truncated_total,
)

pytestmark = pytest.mark.numeric

GRIDS = ((1, 1), (2, 2), (3, 4), (5, 6))
GRADIENT = paths.GOLDEN / 'quantizer_gradient' / 'arrays.npz'


@functools.cache
def compiled(grids=GRIDS):
    return jax.jit(lambda f: quantize(f, grids))


def features(d, seed=0, batch=2, grid=GRIDS[-1]):
    return np.random.default_rng(seed).standard_normal((batch, *grid, d)).astype(np.float32)


def down64(x, grid):
    rows = resize.area_matrix(x.shape[1], grid[0]).astype(np.float64)
    columns = resize.area_matrix(x.shape[2], grid[1]).astype(np.float64)
    return np.einsum('yh,xw,bhwd->byxd', rows, columns, x, optimize=True)


def up64(x, grid):
    rows = resize.bilinear_matrix(x.shape[1], grid[0]).astype(np.float64)
    columns = resize.bilinear_matrix(x.shape[2], grid[1]).astype(np.float64)
    return np.einsum('yh,xw,bhwd->byxd', rows, columns, x, optimize=True)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_definition(f):
    """Bits of all scales and the totals before each, in float64, from the words of the paper."""
    total, bits, totals = np.zeros(f.shape), [], []
    for grid in GRIDS:
        totals.append(total)
        residual = f - total
        z = unit(down64(residual, grid) if grid != GRIDS[-1] else residual)
        bits.append(z > 0)
        total = total + up64(np.where(z > 0, 1, -1) / np.sqrt(f.shape[-1]), GRIDS[-1])
    return bits, totals, total


@pytest.mark.parametrize('d', [4, 7, 14, 32, 64, 100])
def test_quantize_follows_the_definition_for_any_d(d):
    f = features(d)
    quantized = compiled()(f)
    bits, _, total = by_definition(f.astype(np.float64))
    for ours, wanted, code in zip(quantized.bits, bits, quantized.codes, strict=True):
        assert ours.dtype == bool
        assert (ours == wanted).all()
        np.testing.assert_allclose(np.abs(code), d**-0.5, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(code, axis=-1), 1, rtol=1e-5)
        assert ((np.asarray(code) > 0) == wanted).all()
    np.testing.assert_allclose(quantized.total_Bhwd, total, atol=1e-6)


def test_normalised_has_unit_length_and_decides_the_bits():
    quantized = compiled()(features(16))
    for z, bits in zip(quantized.normalised, quantized.bits, strict=True):
        np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, rtol=1e-6)
        assert ((np.asarray(z) > 0) == bits).all()


@pytest.mark.parametrize('dtype', [bool, np.int8, np.float32])
def test_codes_from_bits(dtype):
    bits = np.random.default_rng(0).random((2, 3, 3, 16)) > 0.5
    codes = codes_from_bits(jnp.asarray(bits.astype(dtype)))
    assert codes.dtype == np.float32
    assert (codes == np.where(bits, 0.25, -0.25)).all()


def test_accumulate_and_next_input_rebuild_what_quantize_made():
    quantized = compiled()(features(8))
    total = jnp.zeros_like(quantized.total_Bhwd)
    for bits in quantized.bits:
        total = accumulate(total, codes_from_bits(bits))
    np.testing.assert_allclose(total, quantized.total_Bhwd, atol=1e-6)
    assert (total_from_bits(quantized.bits) == total).all()


def test_next_input_is_bilinear_and_not_area():
    total = jnp.asarray(features(8, grid=(12, 12)))
    ours = next_input(total, (5, 5))
    assert (ours == resize.bilinear(total, (5, 5))).all()
    assert np.abs(ours - resize.area(total, (5, 5))).max() > 0.3
    assert next_input(total, (12, 12)) is total


def test_every_scale_brings_the_total_nearer():
    f = unit(features(32))
    errors = []
    for scales in (1, 2, 3):
        errors.append(float(np.square(compiled(GRIDS[-1:] * scales)(f).total_Bhwd - f).mean()))
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_straight_through_gradient_equals_the_definition_numerically():
    """d/df of Σ up(z_k): bits and what earlier scales took away count as constants."""
    f, d = features(5, batch=1), 5
    weights = np.random.default_rng(1).standard_normal(f.shape)
    _, totals, _ = by_definition(f.astype(np.float64))

    def smooth(x):
        parts = [
            up64(unit(down64(x - total, grid)), GRIDS[-1])
            for grid, total in zip(GRIDS, totals, strict=True)
        ]
        return (weights * sum(parts)).sum()

    wanted = np.zeros(f.shape)
    step = 1e-5
    for index in np.ndindex(f.shape):
        nudge = np.zeros(f.shape)
        nudge[index] = step
        wanted[index] = (smooth(f + nudge) - smooth(f - nudge)) / (2 * step)

    def loss(x):
        return (weights.astype(np.float32) * quantize(x, GRIDS).total_Bhwd).sum()

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(f))
    assert gradient.shape == (1, 5, 6, d)
    assert np.abs(gradient - wanted).max() < 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize('attached', [False, True])
def test_gradient_equals_torch_in_float64(attached):
    """Numbers that torch's autograd gave for the plain definition, computed once in float64."""
    golden = np.load(GRADIENT)
    f, weights = (golden[name].astype(np.float32) for name in ('features', 'weights'))

    def loss(x):
        total = quantize(x, GRIDS, attached=attached).total_Bhwd
        return (weights * total).sum(), total

    gradient, total = jax.jit(jax.grad(loss, has_aux=True))(f)
    wanted = golden['attached' if attached else 'detached']
    np.testing.assert_allclose(total, golden['total'], atol=1e-6)
    assert np.abs(gradient - wanted).max() < 1e-6 * np.abs(wanted).max()


def test_a_dropped_scale_adds_nothing_and_leaves_its_residual_to_the_next():
    f = features(8)
    kept = jnp.array([[True, False, True, True], [True, True, True, True]])
    whole, dropped = compiled()(f), quantize(f, GRIDS, kept_BK=kept)
    fewer = quantize(f, (GRIDS[0], *GRIDS[2:]))
    np.testing.assert_allclose(dropped.total_Bhwd[0], fewer.total_Bhwd[0], atol=1e-6)
    assert (dropped.bits[2][0] == fewer.bits[1][0]).all()
    np.testing.assert_allclose(dropped.total_Bhwd[1], whole.total_Bhwd[1], atol=1e-6)


def test_flipped_bits_are_seen_by_later_scales_and_by_the_total():
    f = features(8)
    rng = np.random.default_rng(3)
    flips = (rng.random((2, 1, 1, 8)) < 0.5, rng.random((2, 2, 2, 8)) < 0.5, None, None)
    whole, flipped = compiled()(f), quantize(f, GRIDS, flips=tuple(flips))
    assert (flipped.bits[0] == whole.bits[0]).all()
    true = [np.asarray(b) for b in flipped.bits]
    written = [b if x is None else b ^ x for b, x in zip(true, flips, strict=True)]
    np.testing.assert_allclose(flipped.total_Bhwd, total_from_bits(tuple(written)), atol=1e-6)
    left = f - np.asarray(total_from_bits((*written[:3], np.zeros((2, 5, 6, 8), bool))))
    left -= 8**-0.5  # the zeros above stand for codes of −1/√d
    assert (true[3] == (left > 0)).all()


def test_truncated_total_stops_at_each_images_scale():
    quantized = compiled()(features(8))
    total = truncated_total(quantized.codes, jnp.array([1, 3]))
    for image, scales in ((0, 1), (1, 3)):
        wanted = sum(
            resize.bilinear(quantized.codes[k][image : image + 1], GRIDS[-1]) for k in range(scales)
        )
        np.testing.assert_allclose(total[image : image + 1], wanted, atol=1e-6)


def test_gradient_is_bounded_where_residuals_vanish_again_and_again():
    """Zero features: codes of opposite signs follow each other, so every other residual is 0."""
    grids = (GRIDS[-1],) * 8
    for attached in (False, True):

        def score(x, attached=attached):
            return quantize(x, grids, attached=attached).total_Bhwd.sum()

        gradient = jax.jit(jax.grad(score))(jnp.zeros((1, 5, 6, 4)))
        assert np.abs(gradient).max() < 100


def test_an_empty_residual_gets_no_gradient_and_others_the_exact_one():
    """At one scale the residual is the features: their lengths around the threshold, and zero."""
    lengths = np.array([0, 1e-13, 0.9e-6, 1.1e-6, 1e-3, 1.0])[:, None]
    f = (unit(features(7, batch=1).astype(np.float64)) * lengths).astype(np.float32)
    g_Bhwd = np.random.default_rng(1).standard_normal(f.shape).astype(np.float32)
    score = lambda x: (g_Bhwd * quantize(x, GRIDS[-1:]).total_Bhwd).sum()
    gradient = np.asarray(jax.jit(jax.grad(score))(f))
    assert not gradient[:, :, :3].any()
    z, g = unit(f[:, :, 3:].astype(np.float64)), g_Bhwd[:, :, 3:]
    wanted = g - z * (z * g).sum(-1, keepdims=True)  # times 1/|r|
    np.testing.assert_allclose(gradient[:, :, 3:] * lengths[3:], wanted, atol=2e-6)


def test_attached_gradient_passes_an_empty_scale_by():
    """Features that are a code leave nothing to scale 2, whose code is then all of scale 3."""
    code = np.array([0.5, -0.5, 0.5, 0.5], np.float32)
    grids = (GRIDS[-1],) * 3
    f = np.broadcast_to(code, (1, *GRIDS[-1], 4))
    w_d = np.array([0.3, -1.0, 2.0, 0.7], np.float32)
    score = lambda x: (w_d[None, None, None] * quantize(x, grids, attached=True).total_Bhwd).sum()
    first = np.eye(4) - np.outer(code, code)  # ∂z₁/∂f; ∂z₂/∂f is 0
    third = np.eye(4) - np.full((4, 4), 0.25)  # ∂z₃/∂r₃, where r₃ = (½, ½, ½, ½)
    wanted = w_d @ (first + third @ (np.eye(4) - first))
    gradient = jax.jit(jax.grad(score))(f)
    np.testing.assert_allclose(gradient, np.broadcast_to(wanted, f.shape), atol=1e-6)


def elements(jaxpr):
    """Sizes of all arrays inside a traced function, nested ones included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.size
        for parameter in equation.params.values():
            inner = getattr(parameter, 'jaxpr', parameter)
            if hasattr(inner, 'eqns'):
                yield from elements(inner)


def test_cost_is_linear_in_d_and_no_table_of_2_to_the_d_exists():
    def sizes(d):
        shape = jax.ShapeDtypeStruct((2, *GRIDS[-1], d), jnp.float32)
        grad = jax.value_and_grad(lambda f: quantize(f, GRIDS).total_Bhwd.sum())
        return list(elements(jax.make_jaxpr(grad)(shape).jaxpr))

    assert sum(sizes(128)) <= 2 * sum(sizes(64)) <= 4 * sum(sizes(32))
    assert max(sizes(64)) <= 2 * 5 * 6 * 64
    assert max(sizes(18)) < 2**18
