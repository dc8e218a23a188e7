"""One layer of generation on weights of its own, for CPUs.

XLA's products on a CPU read whole arrays: a scan over stacked layers first copies each layer's
weights out of the stack, at every scale. Weights that were never stacked are read where they lie.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TransformerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.blocks import Block
from infinity_jax.transformer.condition import Condition
from infinity_jax.transformer.linear import HIGHEST
from infinity_jax.transformer.rope import rope_table

KeysValues = tuple[jax.Array, jax.Array]


def unstack(blocks: Any, depth: int) -> tuple[Any, ...]:
    """The stacked parameters of all blocks as one tree a block.

    On a CPU, a jax array made of a numpy view is that view: no weight is copied, except those that
    do not lie on a multiple of 64 bytes, which are small.
    """
    views = jax.tree.map(np.asarray, blocks)
    return tuple(
        jax.tree.map(lambda view, i=i: jax.device_put(view[i]), views) for i in range(depth)
    )


@functools.partial(jax.jit, static_argnames='config')
def layer_text(config: TransformerConfig, params: Any, memory_BTD: jax.Array) -> KeysValues:
    """One layer's cross-attention keys and values of the text, heads first: (P, N, T, H)."""
    pair = Block(config).apply({'params': params}, memory_BTD, method=Block.text_keys_values)
    return tuple(x.transpose(0, 2, 1, 3) for x in pair)


@functools.partial(
    jax.jit, static_argnames=('config', 'schedule', 'scale'), donate_argnames='x_BLD'
)
def layer_step(
    config: TransformerConfig,
    params: Any,
    x_BLD: jax.Array,
    condition: Condition,
    text_keys_values: KeysValues,
    prefix: KeysValues | None,
    schedule: ScaleSchedule,
    scale: int,
) -> tuple[jax.Array, KeysValues | None]:
    """Runs one scale's tokens through one layer.

    Args:
      params: of this layer alone.
      x_BLD: tokens of this scale, float32.
      text_keys_values: `layer_text` of the same layer.
      prefix: keys and values (B, N, S, H) of the scales before, heads first, so that no product
        has to transpose them again; None at the first scale.
      schedule, scale: static; they say where the tokens stand.

    Returns:
      The new x and the prefix of the next scale; None after the last, which no one reads. The
      products want the old keys and the new in one array: that array is the cache.
    """
    start, end = schedule.spans[scale]
    joined: KeysValues | None = None

    def attend_to_prefix(q_BLNH, k_BLNH, v_BLNH):
        nonlocal joined
        k, v = (each.transpose(0, 2, 1, 3) for each in (k_BLNH, v_BLNH))
        if prefix is not None:
            k, v = (jnp.concatenate(pair, axis=2) for pair in zip(prefix, (k, v), strict=True))
        joined = k, v
        return attend_heads_first(q_BLNH, k, v)

    x_BLD, _ = Block(config).apply(
        {'params': params},
        x_BLD,
        condition.modulation_B6D,
        rope_table(schedule, config.head_dim)[:, start:end],
        text_keys_values,
        condition.lengths_B,
        attend_to_prefix,
        attend_text=attend_heads_first,
    )
    return x_BLD, None if end == schedule.num_tokens else joined


def attend_heads_first(
    q_BLNH: jax.Array,
    k_BNSH: jax.Array,
    v_BNSH: jax.Array,
    *,
    scale: float = 1.0,
    key_lengths_B: jax.Array | None = None,
) -> jax.Array:
    """`attention.attend`, (B, L, N, H), for keys and values that no product has to transpose."""
    precision = HIGHEST if q_BLNH.dtype == jnp.float32 else None
    q_BNLH = q_BLNH.transpose(0, 2, 1, 3)
    scores = scale * jnp.einsum(
        'bnlh,bnsh->bnls', q_BNLH, k_BNSH, precision=precision, preferred_element_type=jnp.float32
    )
    if key_lengths_B is not None:
        padding_BS = jnp.arange(k_BNSH.shape[2])[None] >= key_lengths_B[:, None]
        scores = jnp.where(padding_BS[:, None, None], -jnp.inf, scores)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BNSH.dtype)
    attended = jnp.einsum('bnls,bnsh->bnlh', weights, v_BNSH, precision=precision)
    return attended.transpose(0, 2, 1, 3)
