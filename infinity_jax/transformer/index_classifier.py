"""The index classifier: one softmax over the 2^d codes of a token, for comparison (paper 3.3).

The head of the model has two logits per bit instead, see `model.Transformer`. The index of a token
is Σ 2^p · bit p, so its first bit is the lowest.
"""

import jax
import jax.numpy as jnp


def indices_from_bits(bits_BLd: jax.Array) -> jax.Array:
    """Bits (…, d), bool or 0/1, to indices (…), int32; d is 30 at most."""
    weights = 2 ** jnp.arange(bits_BLd.shape[-1], dtype=jnp.int32)
    return bits_BLd.astype(jnp.int32) @ weights


def bits_from_indices(indices: jax.Array, bits: int) -> jax.Array:
    """Indices (…) to bits (…, d), bool."""
    places = jnp.arange(bits, dtype=indices.dtype).reshape((1,) * indices.ndim + (bits,))
    return (indices[..., None] >> places) & 1 == 1


def index_losses(logits_BLV: jax.Array, targets_BLd: jax.Array) -> jax.Array:
    """Cross-entropy of each token, (B, L), in nats per bit: that of its index over d, float32.

    Args:
      logits_BLV: of the 2^d indices.
      targets_BLd: true bits, bool or 0/1.
    """
    log_p = jax.nn.log_softmax(logits_BLV.astype(jnp.float32), axis=-1)
    index = indices_from_bits(targets_BLd)
    return -jnp.take_along_axis(log_p, index[..., None], axis=-1)[..., 0] / targets_BLd.shape[-1]


def likely_indices(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Logits (…, 2^d) with the indices that sampling must not take at −inf.

    Args:
      logits: after guidance and temperature.
      top_k: number of indices that stay; 0: all.
      top_p: the fewest of the likeliest indices stay whose probabilities sum to this; 1: all.
    """
    if top_k:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        falling = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.where(before < top_p, falling, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def sample_indices(keys_B: jax.Array, logits: jax.Array) -> jax.Array:
    """Samples indices (B, L) from logits (B, L, 2^d), each image by its key alone."""
    return jax.vmap(jax.random.categorical)(keys_B, logits)
