"""Attention over the prefix of scales that a token may see, and cross-attention to text.

"The queries of scale k attend to keys [0, end of scale k)" needs no mask. Small scales are cheaper
together, under one small mask; large ones go alone, each to its own slice of the keys.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from infinity_jax.config import TransformerConfig, UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import axis_size, target_platform
from infinity_jax.transformer.directions import directions
from infinity_jax.transformer.linear import VECTOR, linear
from infinity_jax.transformer.query_chunks import chunked_attention
from infinity_jax.transformer.splash import (
    ATTENDED,
    SMALL_BLOCK,
    filled_length,
    splash_attend,
)

IMPLEMENTATIONS = ('auto', 'xla', 'cudnn', 'splash')
CUDNN_MAX_WIDTH = 128  # of a head; Hopper would take 256
MERGE_TOKENS = 128  # scales share one masked product up to this many queries
MAX_LOG_SCALE = np.log(100.0).astype(np.float32)


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


class SelfAttention(nn.Module):
    """Cosine attention: unit queries and keys, one learned scale a head, then 2-D RoPE.

    The attention itself stands between `project` and `merge`, since training attends within the
    sequence and generation to a cache.
    """

    config: TransformerConfig

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        std, width = (1 / (3 * config.width)) ** 0.5, config.width
        self.qkv = linear(3 * width, ('embed', 'heads'), std, dtype, use_bias=False)
        self.query_bias = self.param('query_bias', VECTOR(nn.initializers.zeros), (width,))
        self.value_bias = self.param('value_bias', VECTOR(nn.initializers.zeros), (width,))
        self.log_scale = self.param(
            'log_scale', nn.initializers.constant(np.log(4.0)), (config.num_heads,)
        )
        self.out = linear(width, ('heads', 'embed'), std / (2 * config.depth) ** 0.5, dtype)

    def project(self, x_BLD: jax.Array, rope_2Lh: np.ndarray):
        """Queries, keys and values (B, L, N, H) in the compute dtype, rotated and normalised."""
        scale = jnp.exp(jnp.minimum(self.log_scale, MAX_LOG_SCALE))
        heads_first = target_platform() == 'tpu'
        q, k, v = self._three_products(x_BLD) if heads_first else self._one_product(x_BLD)
        # Norm, scale and rotation are a float32 island: angles lose meaning in bfloat16.
        axis = 1 if heads_first else 2
        q = directions(q, rope_2Lh, scale, heads_axis=axis)
        k = directions(k, rope_2Lh, heads_axis=axis)
        return tuple(x.swapaxes(1, 2) for x in (q, k, v)) if heads_first else (q, k, v)

    def _one_product(self, x_BLD: jax.Array) -> list[jax.Array]:
        dtype = jnp.dtype(self.config.dtype)
        no_key_bias = jnp.zeros_like(self.query_bias)
        bias = jnp.concatenate([self.query_bias, no_key_bias, self.value_bias]).astype(dtype)
        qkv = jnp.split(self.qkv(x_BLD) + bias[None, None], 3, axis=-1)
        shape = (*x_BLD.shape[:2], self.config.num_heads, self.config.head_dim)
        return [part.reshape(shape) for part in qkv]

    def _three_products(self, x_BLD: jax.Array) -> list[jax.Array]:
        """(B, N, L, H) each: a TPU writes every product as its kernels of attention read it."""
        heads, width = self.config.num_heads, self.config.head_dim
        parts = self.qkv(x_BLD, parts=3)
        q, k, v = (part.reshape(*x_BLD.shape[:2], heads, width).swapaxes(1, 2) for part in parts)
        q_bias, v_bias = (
            bias.astype(q.dtype).reshape(1, heads, 1, width)
            for bias in (self.query_bias, self.value_bias)
        )
        return [q + q_bias, k, v + v_bias]

    def merge(self, attended_BLNH: jax.Array) -> jax.Array:
        """Joins the heads and projects them back to (B, L, D)."""
        return self.out(attended_BLNH, contract=2)


class CrossAttention(nn.Module):
    """Attention from tokens to the projected text; padding is masked by length."""

    config: TransformerConfig
    implementation: str = 'auto'

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        std, width = (1 / (3 * config.width)) ** 0.5, config.width
        self.query = linear(width, ('embed', 'heads'), std, dtype)
        self.key_value = linear(2 * width, ('embed', 'heads'), std, dtype, use_bias=False)
        self.value_bias = self.param('value_bias', VECTOR(nn.initializers.zeros), (width,))
        self.out = linear(width, ('heads', 'embed'), std / (2 * config.depth) ** 0.5, dtype)

    def keys_values(self, memory_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values (B, T, N, H) of the text; the same at every scale."""
        shape = (*memory_BTD.shape[:2], self.config.num_heads, self.config.head_dim)
        keys, values = jnp.split(self.key_value(memory_BTD), 2, axis=-1)
        values = values + self.value_bias.astype(values.dtype)[None, None]
        return keys.reshape(shape), values.reshape(shape)

    def __call__(
        self,
        x_BLD: jax.Array,
        keys_values: tuple[jax.Array, jax.Array],
        text_lengths_B: jax.Array,
        attend_text: Callable[..., jax.Array] | None = None,
    ) -> jax.Array:
        """What each token finds in its text, (B, L, D).

        `attend_text(q_BLNH, keys, values, key_lengths_B=…, scale=…)`, as `attend`, which is the
        default, is for keys and values that do not lie as in `keys_values`.
        """
        if attend_text is None:
            attend_text = functools.partial(attend, implementation=self.implementation)
        shape = (*x_BLD.shape[:2], self.config.num_heads, self.config.head_dim)
        attended = attend_text(
            self.query(x_BLD).reshape(shape),
            *keys_values,
            scale=self.config.head_dim**-0.5,
            key_lengths_B=text_lengths_B,
        )
        return self.out(attended, contract=2)
