"""Norms and pooling of text that is all zeros: finite values, bounded gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import TRANSFORMER

from infinity_jax.transformer.conditioning import RMSNorm, TextPool
from infinity_jax.transformer.layers import layer_norm

pytestmark = pytest.mark.numeric


def test_norms_of_zeros_are_zero_with_slopes_of_at_most_a_thousand():
    x, scale = jnp.zeros((1, 3, 8)), jnp.ones(8)
    rms = lambda x: RMSNorm().apply({'params': {'scale': scale}}, x)
    for norm in (rms, layer_norm):
        y, pull = jax.vjp(norm, x)
        (dx,) = pull(jnp.arange(24.0).reshape(x.shape) / 24)
        # 1/√ε with the usual ε of 1e-6. One norm per block has a residual path around it, so that
        # these slopes are not multiplied.
        assert not y.any() and 0 < np.abs(dx).max() <= 1000


def test_a_pooling_query_and_texts_of_zeros_have_bounded_gradients():
    pool, lengths_B = TextPool(TRANSFORMER), jnp.array([1, 3])
    text = jnp.zeros((2, 3, TRANSFORMER.text_channels))
    params = jax.tree.map(jnp.asarray, pool.init(jax.random.key(0), text, lengths_B)['params'])
    params = {**params, 'query': jnp.zeros_like(params['query'])}

    def score(params, text):
        pooled = pool.apply({'params': params}, text, lengths_B)
        return pooled.sum(), pooled

    gradients, pooled = jax.grad(score, (0, 1), has_aux=True)(params, text)
    assert np.isfinite(pooled).all()
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) < 100
