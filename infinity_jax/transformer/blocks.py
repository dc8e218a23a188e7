"""The transformer block: modulated self-attention, cross-attention to text, modulated FFN."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from infinity_jax.config import TransformerConfig
from infinity_jax.sharding import constrain
from infinity_jax.transformer.attention import CrossAttention, SelfAttention
from infinity_jax.transformer.linear import VECTOR, linear

NORM_EPSILON = 1e-6


def layer_norm(x_BLD: jax.Array) -> jax.Array:
    """Normalises over the width, without parameters, in float32."""
    x = x_BLD.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + NORM_EPSILON)


def modulate(x_BLD: jax.Array, scale_BD: jax.Array, shift_BD: jax.Array) -> jax.Array:
    """LN(x)(1 + s) + b, with one s and b per batch row."""
    return layer_norm(x_BLD) * (1 + scale_BD[:, None]) + shift_BD[:, None]


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        std = (1 / (3 * config.width)) ** 0.5
        h = linear(config.hidden_width, ('embed', 'mlp'), std, dtype, name='up')(x_BLD)
        out_std = std / (2 * config.depth) ** 0.5
        return linear(config.width, ('mlp', 'embed'), out_std, dtype, name='down')(nn.gelu(h))


def _table_init(key, shape, dtype=jnp.float32):
    """Modulation table: N(0, 1)/√C, with the gate rows × 5e-6 and the others × 1e-3."""
    table = jax.random.normal(key, shape, dtype) * shape[-1] ** -0.5
    rows = jnp.array([5e-6, 5e-6, 1e-3, 1e-3, 1e-3, 1e-3], dtype)
    return table * rows[:, None]


class Block(nn.Module):
    """One layer. The residual stream, norms and modulation are float32, products `config.dtype`."""

    config: TransformerConfig
    implementation: str = 'auto'

    def setup(self):
        config = self.config
        self.modulation_table = self.param(
            'modulation_table',
            nn.with_logical_partitioning(_table_init, (None, 'vector')),
            (6, config.width),
        )
        self.self_attention = SelfAttention(config)
        self.cross_norm = nn.LayerNorm(
            epsilon=NORM_EPSILON,
            dtype=jnp.float32,
            use_fast_variance=False,
            scale_init=VECTOR(nn.initializers.ones),
            bias_init=VECTOR(nn.initializers.zeros),
        )
        self.cross_attention = CrossAttention(config, self.implementation)
        self.ffn = FeedForward(config)

    def text_keys_values(self, memory_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.cross_attention.keys_values(memory_BTD)

    def __call__(
        self,
        x_BLD: jax.Array,
        modulation_B6D: jax.Array,
        rope_2Lh: jax.Array,
        text_keys_values: tuple[jax.Array, jax.Array],
        text_lengths_B: jax.Array,
        attend_self: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
        keep_2B: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Runs the layer on float32 x.

        Args:
          attend_self: (q, k, v) of these tokens to attended values; it knows what they may see.
          keep_2B: stochastic depth factors of self-attention and FFN: 0 or 1/(1 − rate).

        Returns:
          The new x and the keys and values (B, L, N, H) that later scales will want.
        """
        rows = modulation_B6D + self.modulation_table[None]
        gate1, gate2, scale1, scale2, shift1, shift2 = (rows[:, i] for i in range(6))
        if keep_2B is not None:
            gate1, gate2 = gate1 * keep_2B[0][:, None], gate2 * keep_2B[1][:, None]

        q, k, v = self.self_attention.project(modulate(x_BLD, scale1, shift1), rope_2Lh)
        update = self.self_attention.merge(attend_self(q, k, v))
        x_BLD = constrain(x_BLD + gate1[:, None] * update, 'batch', 'length', None)

        update = self.cross_attention(self.cross_norm(x_BLD), *text_keys_values, text_lengths_B)
        x_BLD = x_BLD + update.astype(jnp.float32)

        update = self.ffn(modulate(x_BLD, scale2, shift2))
        x_BLD = constrain(x_BLD + gate2[:, None] * update, 'batch', 'length', None)
        return x_BLD, (k, v)
