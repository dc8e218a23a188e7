"""Attention of one scale's tokens, in generation: to the cache and to each other."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import axis_size, target_platform
from infinity_jax.transformer.int8 import Int8
from infinity_jax.transformer.kv_cache import KeyValueCache
from infinity_jax.transformer.splash import (
    ATTENDED,
    SMALL_BLOCK,
    filled_length,
    splash_attend,
    whole_blocks,
)


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


IMPLEMENTATIONS = ('auto', 'xla', 'cudnn', 'splash')


CUDNN_MAX_WIDTH = 128  # of a head; Hopper would take 256


MERGE_TOKENS = 128  # scales share one masked product up to this many queries


def choose(implementation: str, q_BLNH: jax.Array) -> str:
    """The implementation that serves these queries: 'xla', 'cudnn' or 'splash'.

    'auto' goes by the platform that the program is compiled for. Few queries, as the first scales
    have, are left to XLA: kernels would mostly compute padding. cuDNN wants 16 bits.

    Raises:
      UserError: the named one does not run there, or not on this dtype or head width.
    """
    platform, width = target_platform(), q_BLNH.shape[-1]
    few = q_BLNH.shape[1] < SMALL_BLOCK
    half = q_BLNH.dtype in (jnp.bfloat16, jnp.float16)
    fits_cudnn = half and width % 8 == 0 and width <= CUDNN_MAX_WIDTH
    if implementation == 'auto':
        on_gpu = 'cudnn' if fits_cudnn else 'xla'
        implementation = {'tpu': 'splash', 'gpu': on_gpu}.get(platform, 'xla')
        implementation = 'xla' if few else implementation
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f'attention is {implementation!r}; wanted {", ".join(IMPLEMENTATIONS)}')
    if implementation == 'cudnn' and not (fits_cudnn and platform == 'gpu'):
        raise UserError(
            f"attention is 'cudnn', but it would run in {q_BLNH.dtype} with heads of {width} on "
            f'{platform}; it wants a GPU, 16 bits and heads of a multiple of 8 up to '
            f"{CUDNN_MAX_WIDTH}: set attention to 'auto', or transformer.dtype to bfloat16"
        )
    if implementation == 'splash' and platform == 'gpu':
        raise UserError("attention is 'splash', which is for TPU; on a GPU set 'auto' or 'cudnn'")
    return 'xla' if implementation == 'splash' and few else implementation


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
    """softmax(scale · q·k) v, (B, L, N, H), with padded keys or masked pairs left out.

    `implementation` is as in `choose`; a mask is for XLA, whatever it says.
    """
    chosen = choose(implementation, q_BLNH)
    if chosen == 'splash' and mask_LS is None:
        return splash_attend(q_BLNH, k_BSNH, v_BSNH, scale=scale, key_lengths_B=key_lengths_B)
    precision = 'highest' if q_BLNH.dtype == jnp.float32 else 'default'
    with jax.default_matmul_precision(precision):
        return chunked_attention(
            q_BLNH,
            k_BSNH,
            v_BSNH,
            scale=scale,
            mask=None if mask_LS is None else jnp.asarray(mask_LS)[None, None],
            key_value_seq_lengths=key_lengths_B,
            implementation='cudnn' if chosen == 'cudnn' and mask_LS is None else 'xla',
        )


class Group(NamedTuple):
    """Queries [start, end), which see keys [0, end); `mask` where its scales differ in sight."""

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
    """Self-attention of a whole training sequence, each token seeing scales up to its own.

    Tokens behind the last group only fill up the length; no other token sees them. On TPU one call
    of splash attention serves all groups, and skips what none of them sees.
    """
    if choose(implementation, q_BLNH) == 'splash':
        return splash_attend(q_BLNH, k_BLNH, v_BLNH, ends_L=_key_ends(groups))
    parts = [
        attend(
            q_BLNH[:, group.start : group.end],
            k_BLNH[:, : group.end],
            v_BLNH[:, : group.end],
            scale=1.0,
            mask_LS=group.mask,
            implementation=implementation,
        )
        for group in groups
    ]
    fill = q_BLNH.shape[1] - groups[-1].end
    if fill:
        parts.append(jnp.zeros_like(q_BLNH[:, :fill]))
    attended = jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    return checkpoint_name(attended, ATTENDED)


def training_length(length: int, config: TransformerConfig, implementation: str) -> int:
    """Tokens that a sequence is filled up to before its first layer; no real one sees the rest.

    So that the mesh's sequence axis divides it, and splash attention need not fill up its own
    arrays, six times a layer.
    """
    shape = (1, length, config.num_heads, config.head_dim)
    if choose(implementation, jax.ShapeDtypeStruct(shape, jnp.dtype(config.dtype))) == 'splash':
        length = filled_length(length)
    return length + -length % axis_size('sequence')


def _key_ends(groups: tuple[Group, ...]) -> np.ndarray:
    """(L,) how many keys each query sees."""
    ends = [
        np.full(group.end - group.start, group.end) if group.mask is None else group.mask.sum(1)
        for group in groups
    ]
    return np.concatenate(ends)
