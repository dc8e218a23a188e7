"""The layer norm's written gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.transformer.layers import LAYER_NORM_EPSILON, layer_norm

pytestmark = pytest.mark.numeric


def plain(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)


def test_values_and_gradients_are_those_of_the_formula():
    x = 3 + 2 * np.random.default_rng(0).standard_normal((2, 5, 24)).astype(np.float32)
    x[0, 0] *= 1e-3  # where ε matters
    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    loss = lambda norm, x: jnp.sum(weights * norm(x))
    np.testing.assert_allclose(layer_norm(x), plain(x), atol=1e-5)
    ours, wanted = (jax.grad(loss, argnums=1)(norm, x) for norm in (layer_norm, plain))
    np.testing.assert_allclose(ours, wanted, atol=2e-6 * np.abs(wanted).max())
