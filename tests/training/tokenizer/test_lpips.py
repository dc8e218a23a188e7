"""LPIPS against the reference's distances and activations, and a float64 gradient (torch)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lpips_weights import GOLDEN, head_tensors, vgg_tensors

from infinity_jax.training.tokenizer.lpips import _unit, convolution_shapes, lpips, vgg_features
from infinity_jax.training.tokenizer.lpips_files import HEAD_NAME, TORCHVISION_INDICES

pytestmark = pytest.mark.numeric


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN / 'arrays.npz')) | dict(np.load(GOLDEN / 'gradient.npz'))


@pytest.fixture(scope='module')
def params():
    vgg = {
        name: {
            'kernel': vgg_tensors()[f'features.{index}.weight'].transpose(2, 3, 1, 0),
            'bias': vgg_tensors()[f'features.{index}.bias'],
        }
        for index, name in zip(TORCHVISION_INDICES, convolution_shapes(), strict=True)
    }
    heads = tuple(head_tensors()[HEAD_NAME.format(i)].reshape(-1) for i in range(5))
    return {'vgg': vgg, 'heads': heads}


def images(golden, name):
    return jnp.asarray(golden[name].transpose(0, 2, 3, 1))


def test_activations_equal_the_reference(golden, params):
    taps = jax.jit(vgg_features)(params, images(golden, 'image0'))
    means = [jnp.abs(tap).mean() for tap in taps]
    np.testing.assert_allclose(means, golden['relu1_2_mean_abs'], rtol=2e-6)


@functools.cache
def compiled_gradient():
    """(image0, image1, params) -> gradient of the summed distances, and the distances."""

    def total(image0, image1, params):
        distance_B = lpips(params, image0, image1)
        return distance_B.sum(), distance_B

    return jax.jit(jax.grad(total, has_aux=True))


def gradient_errors(gradient, golden):
    """Errors of 200 entries per largest entry, of all of these together, and of the norm.

    Float32 rounds differently on every processor. Where a ReLU or a max pool is within rounding
    of its switch, the other branch is taken, and all pixels that this position sees get another
    gradient. Both branches are right there, and a few such points are in every image: so a
    minority of the entries may be off, by little.
    """
    entries = np.asarray(gradient).transpose(0, 3, 1, 2).ravel()[golden['index']]
    difference = entries - golden['value']
    return (
        np.abs(difference) / np.abs(golden['value']).max(),
        np.linalg.norm(difference) / np.linalg.norm(golden['value']),
        abs(np.linalg.norm(gradient) / float(golden['norm']) - 1),
    )


def agrees(gradient, golden):
    entries, together, norm = gradient_errors(gradient, golden)
    # Seen on AVX2: a median of 2e-6, 12 of 200 entries above 2e-3, together 0.006, norm 3e-5.
    return np.median(entries) < 5e-5 and together < 0.02 and norm < 5e-4


def test_value_and_gradient_equal_the_reference(golden, params):
    image0, image1 = (images(golden, name) for name in ('image0', 'image1'))
    gradient, distance_B = compiled_gradient()(image0, image1, params)
    wanted_B = np.load(GOLDEN / 'arrays.npz')['distance']
    np.testing.assert_allclose(distance_B, wanted_B, rtol=1e-5)  # float32
    np.testing.assert_allclose(distance_B, golden['distance'], rtol=1e-5)  # float64
    assert agrees(gradient, golden), gradient_errors(gradient, golden)


@pytest.mark.parametrize('planted', ['gain', 'head', 'bias', 'kernel', 'shifted image'])
def test_a_wrong_gradient_is_seen(golden, params, planted):
    """The allowance for switch points hides no error of a few percent in one part."""
    image0, image1 = (images(golden, name) for name in ('image0', 'image1'))
    vgg, heads = params['vgg'], params['heads']
    if planted == 'head':
        heads = (*heads[:2], 1.05 * heads[2], *heads[3:])
    elif planted == 'bias':
        vgg = {**vgg, '2_1': {**vgg['2_1'], 'bias': vgg['2_1']['bias'] + 0.01}}
    elif planted == 'kernel':
        # Channels apart: a common factor would vanish in the normalisation.
        kernel = vgg['3_1']['kernel']
        factors = 1 + 0.05 * (-1.0) ** np.arange(kernel.shape[-1], dtype=np.float32)
        vgg = {**vgg, '3_1': {**vgg['3_1'], 'kernel': kernel * factors[None, None, None]}}
    elif planted == 'shifted image':
        image0 = image0 + 1e-3
    gradient, _ = compiled_gradient()(image0, image1, {'vgg': vgg, 'heads': heads})
    if planted == 'gain':
        gradient = 1.001 * gradient
    assert not agrees(gradient, golden), gradient_errors(gradient, golden)


def test_a_feature_vector_without_length_gets_no_gradient():
    rng = np.random.default_rng(0)
    lengths = np.array([0, 1e-12, 0.9e-6, 1.1e-6, 1e-3, 10.0])[:, None]
    x = rng.standard_normal((1, 1, 6, 8))
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    g = rng.standard_normal(x.shape).astype(np.float32)
    score = lambda x: (g * _unit(x)).sum()
    dx = np.asarray(jax.jit(jax.grad(score))((unit * lengths).astype(np.float32)))
    assert not dx[0, 0, :3].any()
    # y = u·l/(l + ε), so dx = (g − u (u·g))/(l + ε) + u (u·g)·ε/(l + ε)².
    u, along, floor = unit, (unit * g).sum(-1, keepdims=True), lengths + 1e-10
    wanted = (g - u * along) / floor + u * along * 1e-10 / floor**2
    np.testing.assert_allclose((dx * lengths)[:, :, 3:], (wanted * lengths)[:, :, 3:], atol=2e-6)


def test_equal_and_dead_features_have_no_distance_and_a_finite_gradient(params):
    # With large negative biases every feature is 0, where a square root has no gradient.
    dead = jax.tree.map(lambda x: x - 1e3 if x.ndim == 1 else x, params['vgg'])
    target = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3), minval=-1)
    total = jax.jit(jax.value_and_grad(lambda x, y, weights: lpips(weights, x, y).sum()))
    for vgg in (params['vgg'], dead):
        value, grad = total(target, target, {**params, 'vgg': vgg})
        assert value < 1e-8 and jnp.isfinite(grad).all()


def test_an_image_too_small_for_four_pools_is_refused(params):
    with pytest.raises(ValueError, match='wanted edges of 16'):
        lpips(params, jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 8, 3)))
