"""PatchGAN: its receptive field, the hinge, LeCam by hand, and finite gradients everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.training.tokenizer.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    generator_loss,
    hinge,
    lecam,
    smallest_image,
)

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize('layers', [1, 2, 3])
def test_one_logit_per_patch(layers):
    model = PatchDiscriminator(channels=8, layers=layers)
    edge = smallest_image(layers)
    shape = lambda n: (
        jax.eval_shape(
            lambda key, x: model.init_with_output(key, x)[0],
            jax.random.key(0),
            jnp.zeros((2, n, n, 3)),
        ).shape
    )
    assert shape(edge) == (2, 1, 1)
    assert shape(4 * edge)[0] == 2 and shape(4 * edge)[1] == 4 * 3 - 2
    assert 0 in shape(edge - 1)


def test_sees_its_patch_and_no_other_image():
    model = PatchDiscriminator(channels=8, layers=1)  # patches of 16², group norms aside
    pixels = jax.random.normal(jax.random.key(0), (2, 24, 24, 3))
    params = model.init(jax.random.key(1), pixels)
    grad = jax.jit(jax.grad(lambda x: model.apply(params, x)[0, 0, 0]))(pixels)
    assert jnp.abs(grad[0]).max() > 0 and jnp.abs(grad[1]).max() == 0
    assert model.apply(params, pixels).dtype == jnp.float32


def test_hinge_is_zero_beyond_the_margins():
    assert hinge(jnp.full((1, 2, 2), 1.5), jnp.full((1, 2, 2), -1.5)) == 0
    assert hinge(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 2))) == 1
    assert generator_loss(jnp.full((1, 2, 2), 3.0)) == -3


def test_lecam_by_hand():
    real, fake = jnp.array([[[2.0, -1.0]]]), jnp.array([[[0.0, -3.0]]])
    # relu(real − (−1))² = 9, 0 and relu(1 − fake)² = 1, 16
    assert lecam(real, fake, jnp.float32(1), jnp.float32(-1)) == pytest.approx(4.5 + 8.5)


def test_adaptive_weight_is_a_clipped_ratio():
    assert adaptive_weight(jnp.float32(3), jnp.float32(1), 10.0) == pytest.approx(3, rel=2e-4)
    assert adaptive_weight(jnp.float32(3), jnp.float32(0), 10.0) == 10
    assert adaptive_weight(jnp.float32(0), jnp.float32(0), 10.0) == 0


def test_lecam_and_hinge_have_finite_gradients_at_zero():
    zeros, zero = jnp.zeros((1, 2, 2)), jnp.float32(0)
    assert lecam(zeros, zeros, zero, zero) == 0
    for gradient in jax.grad(lecam, (0, 1))(zeros, zeros, zero, zero):
        assert not gradient.any()
    for gradient in jax.grad(hinge, (0, 1))(zeros, zeros):
        np.testing.assert_allclose(np.abs(gradient), 0.125)  # ½ / 4 logits


def test_a_flat_image_has_bounded_gradients():
    model = PatchDiscriminator(channels=8, layers=2)
    pixels = jnp.zeros((1, 16, 16, 3))
    params = model.init(jax.random.key(0), pixels)
    grads = jax.jit(jax.grad(lambda p, x: model.apply(p, x).sum(), argnums=(0, 1)))(params, pixels)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) < 100
