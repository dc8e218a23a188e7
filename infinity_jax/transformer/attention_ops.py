"""Attention as operations on arrays, without parameters; `attention_choice` names who computes it.

- `prefix_attention` serves training: a whole sequence, each token seeing the scales up to its own.
- `attend_scale` serves generation: the tokens of one scale, which see the cache and each other.
- `attend` is what both call: softmax(scale · q·k) v by XLA, cuDNN or splash attention.
- `chunked_attention` bounds the memory of XLA's attention, which holds float32 scores of every
  query with every key. At the last scale of 1024² those are 2.8 GB per batch row in a 2B model.
  Queries do not depend on each other, so they are processed in chunks.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from infinity_jax.config import TransformerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import axis_size, constrain
from infinity_jax.transformer.attention_choice import choose
from infinity_jax.transformer.int8 import Int8
from infinity_jax.transformer.kv_cache import KeyValueCache
from infinity_jax.transformer.splash import (
    ATTENDED,
    filled_length,
    splash_attend,
    whole_blocks,
)

MERGE_TOKENS = 128  # scales share one masked product up to this many queries
CUBLAS_ROWS = 8  # rows of 16-bit matrices that its tensor cores take come in multiples of it
MAX_SCORE_BYTES = 2**28  # of float32 scores that may exist at once


class Group(NamedTuple):
    """Queries [start, end), which see keys [0, end), or fewer under a mask.

    Attributes:
      start, end: tokens of the sequence.
      mask: (end − start, end) bool, True where a query sees a key; None for a single scale.
    """

    start: int
    end: int
    mask: np.ndarray | None


@functools.lru_cache(maxsize=64)
def query_groups(schedule: ScaleSchedule, merge_tokens: int = MERGE_TOKENS) -> tuple[Group, ...]:
    """Partitions the sequence into runs of scales that are attended together."""
    runs: list[list[int]] = []
    for scale, (_, end) in enumerate(schedule.spans):
        if runs and end - schedule.spans[runs[-1][0]][0] <= merge_tokens:
            runs[-1].append(scale)
        else:
            runs.append([scale])
    groups = []
    for run in runs:
        start, end = schedule.spans[run[0]][0], schedule.spans[run[-1]][1]
        scale_of = schedule.scale_of_token
        visible = scale_of[start:end, None] >= scale_of[None, :end]
        groups.append(Group(start, end, None if len(run) == 1 else visible))
    return tuple(groups)


def prefix_attention(
    q_BLNH: jax.Array,
    k_BLNH: jax.Array,
    v_BLNH: jax.Array,
    groups: tuple[Group, ...],
    implementation: str = 'auto',
) -> jax.Array:
    """Self-attention of a whole training sequence, each token seeing the scales up to its own.

    Tokens after the last group are padding; no other token sees them. On TPU one call of splash
    attention serves all groups and skips the blocks that none of them sees.

    Returns:
      Attended values (B, L, N, H).
    """
    if choose(implementation, q_BLNH) == 'splash':
        return splash_attend(q_BLNH, k_BLNH, v_BLNH, ends_L=_key_ends(groups))
    parts = []
    for group in groups:
        q, end, lengths = q_BLNH[:, group.start : group.end], group.end, None
        if group.mask is None and choose(implementation, q) == 'cudnn':
            end += end % 2  # a token of the padding, which the lengths mask; see `_in_pairs`
            lengths = jnp.full((len(q),), group.end, jnp.int32)
        parts.append(
            attend(
                q,
                k_BLNH[:, :end],
                v_BLNH[:, :end],
                scale=1.0,
                key_lengths_B=lengths,
                mask_LS=group.mask,
                implementation=implementation,
            )
        )
    padding = q_BLNH.shape[1] - groups[-1].end
    if padding:
        parts.append(jnp.zeros_like(q_BLNH[:, :padding]))
    attended = jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    return checkpoint_name(attended, ATTENDED)


def _key_ends(groups: tuple[Group, ...]) -> np.ndarray:
    """The number of keys that each query sees, (L,)."""
    ends = [
        np.full(group.end - group.start, group.end) if group.mask is None else group.mask.sum(1)
        for group in groups
    ]
    return np.concatenate(ends)


def training_length(length: int, config: TransformerConfig, implementation: str) -> int:
    """Tokens that a training sequence is padded to before its first layer.

    The padded length is a multiple of the mesh's sequence axis. For splash attention it is made of
    whole blocks too, or the kernel would pad its own arrays, six times per layer. For cuDNN it is
    a multiple of 8, or XLA would pad the operands of every product for cuBLAS, and cut the results.
    """
    shape, multiple = (1, length, config.num_heads, config.head_dim), axis_size('sequence')
    chosen = choose(implementation, jax.ShapeDtypeStruct(shape, jnp.dtype(config.dtype)))
    if chosen == 'splash':
        length = filled_length(length)
    if chosen == 'cudnn':
        multiple = math.lcm(multiple, CUBLAS_ROWS)
    return length + -length % multiple


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
    """Self-attention of one scale's tokens [start, start + L) in generation, for one layer.

    Keys and values are joined once, in the length that the kernel needs.

    Args:
      layer: index into the cache, traced.
      start: tokens of earlier scales, which the cache holds.
      last: whether this is the last scale, which is not stored because nothing reads it later.
      implementation: as in `attention_choice.choose`.

    Returns:
      Attended values (B, L, N, H) and the cache with this scale's keys and values.
    """
    length = q_BLNH.shape[1]
    end = start + length
    uses_splash = choose(implementation, q_BLNH) == 'splash'
    filled = whole_blocks(length, end) if uses_splash else end
    new = _swap_heads(k_BLNH), _swap_heads(v_BLNH)
    visible = None
    if last or isinstance(cache.keys, Int8):  # 8 bits hold earlier scales, not this one
        visible = _joined(cache, layer, start, new, filled)
    if not last:
        cache = cache.store(layer, start, *new)
    if visible is None:
        rows, dtype = q_BLNH.shape[0], q_BLNH.dtype
        visible = cache.prefix(layer, min(filled, cache.tokens), rows, dtype)
    keys, values = map(_swap_heads, visible)
    if uses_splash:
        ends_L = None if keys.shape[1] == end else np.full(length, end)
        attended = splash_attend(q_BLNH, keys, values, ends_L=ends_L)
    else:
        attended = attend(q_BLNH, keys, values, scale=1.0, implementation=implementation)
    return attended, cache


def _joined(
    cache: KeyValueCache, layer: jax.Array, start: int, new: tuple[jax.Array, ...], filled: int
) -> tuple[jax.Array, ...]:
    """Keys and values (B, N, filled, H): the cache's, then the new ones, then zeros."""
    rows, heads, length, head_dim = new[0].shape
    padding = jnp.zeros((rows, heads, filled - start - length, head_dim), new[0].dtype)
    if not start:
        return tuple(jnp.concatenate([x, padding], axis=2) for x in new)
    old = cache.prefix(layer, start, rows, new[0].dtype)
    return tuple(jnp.concatenate([*pair, padding], axis=2) for pair in zip(old, new, strict=True))


def _swap_heads(x: jax.Array) -> jax.Array:
    """(B, L, N, H) to (B, N, L, H), or the inverse."""
    return x.transpose(0, 2, 1, 3)


def attend(
    q_BLNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    *,
    scale: float,
    key_lengths_B: jax.Array | None = None,
    mask_LS: np.ndarray | None = None,
    implementation: str = 'auto',
) -> jax.Array:
    """softmax(scale · q·k) v, (B, L, N, H).

    Args:
      scale: factor of the scores.
      key_lengths_B: number of keys that are no padding; None: all.
      mask_LS: True where a query sees a key; None: everywhere. XLA computes masked attention
        under every implementation.
      implementation: as in `attention_choice.choose`.
    """
    chosen = choose(implementation, q_BLNH)
    if chosen == 'splash' and mask_LS is None:
        return splash_attend(q_BLNH, k_BSNH, v_BSNH, scale=scale, key_lengths_B=key_lengths_B)
    queries = q_BLNH.shape[1]
    if chosen == 'cudnn':
        if key_lengths_B is not None:
            q_BLNH, k_BSNH, v_BSNH = map(_in_pairs, (q_BLNH, k_BSNH, v_BSNH))
        q_BLNH, k_BSNH, v_BSNH = map(_by_heads, (q_BLNH, k_BSNH, v_BSNH))
    precision = 'highest' if q_BLNH.dtype == jnp.float32 else 'default'
    with jax.default_matmul_precision(precision):
        attended = chunked_attention(
            q_BLNH,
            k_BSNH,
            v_BSNH,
            scale=scale,
            mask=None if mask_LS is None else jnp.asarray(mask_LS)[None, None],
            key_value_seq_lengths=key_lengths_B,
            implementation='cudnn' if chosen == 'cudnn' and mask_LS is None else 'xla',
        )
    attended = _by_heads(attended) if chosen == 'cudnn' else attended
    return attended[:, :queries]


def _by_heads(x_BLNH: jax.Array) -> jax.Array:
    """Splits batch and heads over the mesh: cuDNN's attention wants it of q, k and v alike."""
    return constrain(x_BLNH, 'batch', None, 'heads', None)


def _in_pairs(x_BLNH: jax.Array) -> jax.Array:
    """Pads an odd number of tokens with zeros: jax has no gradient of cuDNN's attention for those.

    Keys that are added must be masked.
    """
    return jnp.pad(x_BLNH, ((0, 0), (0, x_BLNH.shape[1] % 2), (0, 0), (0, 0)))


def chunked_attention(
    q_BLNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    *,
    mask: jax.Array | None = None,
    implementation: Literal['xla', 'cudnn'] | None = None,
    **options: Any,
) -> jax.Array:
    """`jax.nn.dot_product_attention` in chunks of queries, within bounded memory.

    Args:
      mask: (…, L, S). Masks are for few queries, so masked attention is not split into chunks.
      implementation: 'xla', or 'cudnn', which stores no scores and is called without chunks.
      options: of `jax.nn.dot_product_attention`.
    """
    batch, queries, heads, _ = q_BLNH.shape
    length = chunk_length(batch * heads, queries, k_BSNH.shape[1])

    def attend_chunk(q_BlNH: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q_BlNH, k_BSNH, v_BSNH, mask=mask, implementation=implementation, **options
        )

    if length == queries or mask is not None or implementation == 'cudnn':
        return attend_chunk(q_BLNH)
    whole = queries - queries % length
    chunks = q_BLNH[:, :whole].reshape(batch, -1, length, *q_BLNH.shape[2:]).swapaxes(0, 1)
    # Without the checkpoint, a gradient would keep the scores of all chunks.
    attended = jax.lax.map(jax.checkpoint(attend_chunk), chunks).swapaxes(0, 1)
    attended = attended.reshape(batch, whole, *attended.shape[3:])
    if whole == queries:
        return attended
    return jnp.concatenate([attended, attend_chunk(q_BLNH[:, whole:])], axis=1)


def chunk_length(rows: int, queries: int, keys: int) -> int:
    """Queries per chunk, so that their scores with all keys take at most `MAX_SCORE_BYTES`.

    Args:
      rows: batch rows times heads.
      queries, keys: per row.
    """
    fitting = max(MAX_SCORE_BYTES // (4 * rows * keys), 1)
    return min(fitting - fitting % 64 or fitting, queries)
