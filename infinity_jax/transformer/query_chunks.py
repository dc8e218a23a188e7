"""XLA's attention in chunks of queries where the scores of all would be large.

XLA keeps float32 scores of every query with every key. At the last scale of 1024² those are 2.8 GB
a batch row in a 2B model; queries do not depend on each other, so they can be taken in turn.
"""

from typing import Any

import jax
import jax.numpy as jnp

MAX_SCORE_BYTES = 2**28  # of float32 scores that may exist at once


def chunk_length(rows: int, queries: int, keys: int) -> int:
    """Queries whose scores with all keys, over so many rows (batch and heads), stay in bounds."""
    fitting = max(MAX_SCORE_BYTES // (4 * rows * keys), 1)
    return min(fitting - fitting % 64 or fitting, queries)


def chunked_attention(
    q_BLNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    *,
    mask: jax.Array | None = None,
    implementation: str | None = None,
    **options: Any,
) -> jax.Array:
    """`jax.nn.dot_product_attention`, the same product by product, within bounded memory.

    Args:
      mask: (…, L, S); with one, no chunks are made: masks are for few queries.
      implementation: 'cudnn' keeps no scores and is called as it is.
      options: of `jax.nn.dot_product_attention`.
    """
    batch, queries, heads, _ = q_BLNH.shape
    length = chunk_length(batch * heads, queries, k_BSNH.shape[1])

    def attend(q_BlNH: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q_BlNH, k_BSNH, v_BSNH, mask=mask, implementation=implementation, **options
        )

    if length == queries or mask is not None or implementation == 'cudnn':
        return attend(q_BLNH)
    whole = queries - queries % length
    chunks = q_BLNH[:, :whole].reshape(batch, -1, length, *q_BLNH.shape[2:]).swapaxes(0, 1)
    # Recomputed in a gradient, which would otherwise keep the scores of all chunks after all.
    attended = jax.lax.map(jax.checkpoint(attend), chunks).swapaxes(0, 1)
    attended = attended.reshape(batch, whole, *attended.shape[3:])
    if whole == queries:
        return attended
    return jnp.concatenate([attended, attend(q_BLNH[:, whole:])], axis=1)
