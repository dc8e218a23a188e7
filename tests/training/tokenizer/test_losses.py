"""Entropy penalty against the reference's values and gradient, and where a plain log breaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import paths

from infinity_jax.images import psnr
from infinity_jax.tokenizer.quantizer import quantize
from infinity_jax.training.tokenizer import losses

pytestmark = pytest.mark.numeric

GOLDEN = paths.GOLDEN / 'bsq_entropy' / 'arrays.npz'


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN))


def difference(z):
    terms = losses.bit_entropies(z)
    return terms.per_sample - terms.codebook


def test_entropies_equal_the_reference(golden):
    terms = losses.bit_entropies(golden['z'], float(golden['inv_temperature']))
    np.testing.assert_allclose(terms.per_sample, golden['per_sample_entropy'], rtol=2e-6)
    np.testing.assert_allclose(terms.codebook, golden['codebook_entropy'], rtol=1e-6)


def test_bit_logits_equal_the_reference_probabilities(golden):
    p0 = jax.nn.sigmoid(losses.bit_logits(golden['z'])).mean((0, 1))
    np.testing.assert_allclose(p0, golden['average_probability_of_0_and_1'][:, 0], rtol=1e-5)


def test_gradient_equals_the_reference(golden):
    grad = jax.grad(difference)(golden['z'])
    wanted = golden['grad_of_difference']
    assert np.abs(grad - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize('d', [4, 32, 64])
def test_saturated_bits_stay_finite(d):
    # A corner of the cube, and a single axis, where |logit| is as large as it gets.
    corner = jnp.full((2, 3, 3, d), d**-0.5)
    axis = jnp.zeros((2, 3, 3, d)).at[..., 0].set(1.0)
    for z in (corner, axis):
        value, grad = jax.value_and_grad(difference)(z)
        assert jnp.isfinite(value) and jnp.isfinite(grad).all()


def test_scales_are_pooled_apart():
    # Each scale has constant bits, but other ones: pooled together they would look used.
    d = 8
    low, high = (jnp.full((4, n, n, d), sign * d**-0.5) for n, sign in ((2, -1), (2, 1)))
    apart = losses.entropy_penalty((low, high))
    pooled = losses.entropy_penalty((jnp.concatenate([low, high]),))
    assert pooled < apart - 0.05  # 8 bits of log 2, over β = 100
    assert apart == pytest.approx(0.0, abs=1e-3)


def test_commitment_pulls_towards_the_code():
    features = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    z = quantize(features, ((1, 1), (4, 4))).normalised
    assert losses.commitment(z) > 0
    codes = tuple(jnp.where(x > 0, 1.0, -1.0) / 8**0.5 for x in z)
    assert losses.commitment(codes) == pytest.approx(0.0, abs=1e-6)


def test_commitment_by_hand():
    # d = 4: codes are ±1/2 each. Distances 0.25 and 1.25, then 0.5.
    first = jnp.array([[[[1.0, 0.5, 0.5, 0.5], [1.5, -0.5, -0.5, 1.0]]]])
    second = jnp.array([[[[0.0, 0.0, -0.5, -0.5]]]])
    assert losses.commitment((first,)) == pytest.approx((0.25 + 1.25) / 2, rel=1e-6)
    assert losses.commitment((first, second)) == pytest.approx((0.75 + 0.5) / 2, rel=1e-6)


def test_the_entropy_penalty_by_hand():
    """From probabilities themselves, in float64, at a β that leaves none of them at 0 or 1."""
    beta, d, penalties = 1.5, 4, []
    scales = [np.random.default_rng(n).standard_normal((2, n, n, d)) / 2 for n in (1, 3)]
    entropy = lambda p: -(p * np.log(p) + (1 - p) * np.log(1 - p))
    for z in scales:
        # Softmax over −β·(distance to a code)², for the codes −1/√d and 1/√d.
        weight = [np.exp(-beta * (z - code) ** 2) for code in (-(d**-0.5), d**-0.5)]
        p = (weight[0] / sum(weight)).reshape(-1, d)
        penalties.append((entropy(p).sum(-1).mean() - entropy(p.mean(0)).sum()) / beta)
    penalty = jax.jit(lambda *normalised: losses.entropy_penalty(normalised, beta))
    found = penalty(*[jnp.asarray(z, jnp.float32) for z in scales])
    assert found == pytest.approx(np.mean(penalties), rel=1e-4)
    assert np.mean(penalties) < -0.01


def test_psnr_of_a_known_error():
    target = jnp.zeros((2, 4, 4, 3))
    assert psnr(target + 0.2, target) == pytest.approx(20.0, abs=1e-4)  # (2 / 0.2)² = 20 dB


def test_a_lower_inverse_temperature_reaches_bits_that_never_change():
    """At 32 bits and β = 100 a certain bit's probability is 1 − 4e-6: the term cannot turn it."""
    d = 32
    z = jnp.full((16, 1, 1, d), d**-0.5)
    z *= jnp.linspace(0.7, 1.3, 16)[:, None, None, None]  # certain, and different by image

    def slope(inverse_temperature):
        penalty = lambda z: losses.entropy_penalty((z,), inverse_temperature)
        return jnp.abs(jax.grad(penalty)(z)).max()

    assert slope(16.0) > 100 * slope(100.0)
