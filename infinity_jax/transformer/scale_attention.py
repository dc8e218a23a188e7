"""Attention of one scale's tokens, in generation: to the cache and to each other."""

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.transformer.attention import attend, choose
from infinity_jax.transformer.cache import KeyValueCache
from infinity_jax.transformer.int8 import Int8
from infinity_jax.transformer.splash import splash_attend, whole_blocks


def attend_scale(
    q_BLNH: jax.Array,
    k_BLNH: jax.Array,
    v_BLNH: jax.Array,
    cache: KeyValueCache,
    layer: jax.Array,
    start: int,
    *,
    last: bool,
    implementation: str = 'auto',
) -> tuple[jax.Array, KeyValueCache]:
    """What the tokens [start, start + L) of a layer attend to, (B, L, N, H), and the new cache.

    Keys and values are put together once, in the length that the kernel wants.

    Args:
      layer: of the cache, traced.
      last: of the scales, which is not stored: no one reads it.
      implementation: as in `attention.choose`.
    """
    length = q_BLNH.shape[1]
    end = start + length
    in_blocks = choose(implementation, q_BLNH) == 'splash'
    filled = whole_blocks(length, end) if in_blocks else end
    new = _swapped(k_BLNH), _swapped(v_BLNH)
    seen = None
    if last or isinstance(cache.keys, Int8):  # 8 bits hold earlier scales, not this one
        seen = _joined(cache, layer, start, new, filled)
    if not last:
        cache = cache.store(layer, start, *new)
    if seen is None:
        rows, dtype = q_BLNH.shape[0], q_BLNH.dtype
        seen = cache.prefix(layer, min(filled, cache.tokens), rows, dtype)
    keys, values = map(_swapped, seen)
    if in_blocks:
        ends_L = None if keys.shape[1] == end else np.full(length, end)
        attended = splash_attend(q_BLNH, keys, values, ends_L=ends_L)
    else:
        attended = attend(q_BLNH, keys, values, scale=1.0, implementation=implementation)
    return attended, cache


def _joined(
    cache: KeyValueCache, layer: jax.Array, start: int, new: tuple[jax.Array, ...], filled: int
) -> tuple[jax.Array, ...]:
    """Keys and values (B, N, filled, H): the cache's first, then new ones, then zeros."""
    rows, heads, length, width = new[0].shape
    fill = jnp.zeros((rows, heads, filled - start - length, width), new[0].dtype)
    if not start:
        return tuple(jnp.concatenate([x, fill], axis=2) for x in new)
    old = cache.prefix(layer, start, rows, new[0].dtype)
    return tuple(jnp.concatenate([*pair, fill], axis=2) for pair in zip(old, new, strict=True))


def _swapped(x: jax.Array) -> jax.Array:
    """(B, L, N, H) with its heads before its tokens, or the other way round."""
    return x.transpose(0, 2, 1, 3)
