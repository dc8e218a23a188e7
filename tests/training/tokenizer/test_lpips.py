"""LPIPS against the reference's distances and activations, and a float64 gradient (torch)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lpips_weights import GOLDEN, head_tensors, vgg_tensors

from infinity_jax.training.tokenizer.lpips import convolution_shapes, lpips, vgg_features
from infinity_jax.training.tokenizer.lpips_files import HEAD_NAME, TORCHVISION_INDICES


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


def test_value_and_gradient_equal_the_reference(golden, params):
    image0, image1 = (images(golden, name) for name in ('image0', 'image1'))

    def total(x):
        distance_B = lpips(params, x, image1)
        return distance_B.sum(), distance_B

    grad, distance_B = jax.jit(jax.grad(total, has_aux=True))(image0)
    wanted_B = np.load(GOLDEN / 'arrays.npz')['distance']
    np.testing.assert_allclose(distance_B, wanted_B, rtol=1e-5)  # float32
    np.testing.assert_allclose(distance_B, golden['distance'], rtol=1e-5)  # float64
    entries = np.asarray(grad).transpose(0, 3, 1, 2).ravel()[golden['index']]
    # ReLU and max pool switch at single positions where float32 rounds: hence the norm's share.
    assert np.abs(entries - golden['value']).max() < 1e-4 * np.abs(golden['value']).max()
    assert np.linalg.norm(grad) == pytest.approx(float(golden['norm']), rel=1e-5)


def test_equal_and_dead_features_have_no_distance_and_a_finite_gradient(params):
    # With large negative biases every feature is 0, where a square root has no gradient.
    dead = jax.tree.map(lambda x: x - 1e3 if x.ndim == 1 else x, params['vgg'])
    target = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3), minval=-1)
    total = jax.jit(jax.value_and_grad(lambda x, y, weights: lpips(weights, x, y).sum()))
    for vgg in (params['vgg'], dead):
        value, grad = total(target, target, {**params, 'vgg': vgg})
        assert value < 1e-8 and jnp.isfinite(grad).all()


def test_a_image_too_small_for_four_pools_is_refused(params):
    with pytest.raises(ValueError, match='wanted edges of 16'):
        lpips(params, jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 8, 3)))
