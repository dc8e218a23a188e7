"""Stochastic depth: updates of self-attention and FFN left out at random, a picture at a time."""

import jax
import numpy as np

from infinity_jax.config import TransformerConfig


def draw_kept(key: jax.Array, config: TransformerConfig, batch: int) -> jax.Array | None:
    """Factors of the updates, float32 (B, layers, 2): 0 or 1/(1 − rate); None at rate 0.

    The rate grows linearly over the layers, from 0 to `config.drop_path`.
    """
    if not config.drop_path:
        return None
    rates = np.linspace(0, config.drop_path, config.depth, dtype=np.float32)[None, :, None]
    kept = jax.random.bernoulli(key, 1 - rates, (batch, config.depth, 2))
    return kept / (1 - rates)
