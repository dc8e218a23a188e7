"""The transformer block: modulated self-attention, cross-attention to text, modulated FFN."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from infinity_jax.config import TransformerConfig
from infinity_jax.sharding import constrain
from infinity_jax.transformer.attention import CrossAttention, SelfAttention
from infinity_jax.transformer.layers import MATRIX, VECTOR, layer_norm, linear
from infinity_jax.transformer.tpu import fusion_barrier, in_pieces

UPDATE = 'update'  # checkpoint name of the FFN's output, for `remat.POLICIES`


def modulate(x_BLD: jax.Array, scale_BD: jax.Array, shift_BD: jax.Array) -> jax.Array:
    """LN(x)(1 + s) + b, with one scale s and one shift b per batch row."""
    return layer_norm(x_BLD) * (1 + scale_BD[:, None]) + shift_BD[:, None]


class LayerNorm(nn.Module):
    """Layer norm with a learned scale and shift, float32."""

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        width = (x_BLD.shape[-1],)
        scale = self.param('scale', VECTOR(nn.initializers.ones), width)
        bias = self.param('bias', VECTOR(nn.initializers.zeros), width)
        return layer_norm(x_BLD) * scale[None, None] + bias[None, None]


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BLD: jax.Array, generating: bool = False) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        std = (1 / (3 * config.width)) ** 0.5
        up = linear(config.hidden_width, ('embed', 'mlp'), std, dtype, name='up')
        out_std = std / (2 * config.depth) ** 0.5
        down = linear(config.width, ('mlp', 'embed'), out_std, dtype, name='down')
        compute = lambda x: down(nn.gelu(up(x)))
        return in_pieces(compute, x_BLD) if generating else compute(x_BLD)


def _table_init(key, shape, dtype=jnp.float32):
    """Modulation table: N(0, 1)/√D, with the gate rows × 5e-6 and the others × 1e-3."""
    table = jax.random.normal(key, shape, dtype) * shape[-1] ** -0.5
    rows = jnp.array([5e-6, 5e-6, 1e-3, 1e-3, 1e-3, 1e-3], dtype)
    return table * rows[:, None]


class Block(nn.Module):
    """One layer. Residual stream, norms and modulation are float32, products `config.dtype`."""

    config: TransformerConfig
    implementation: str = 'auto'

    def setup(self):
        config = self.config
        self.modulation_table = self.param(
            'modulation_table',
            MATRIX(_table_init, (None, 'vector')),
            (6, config.width),
        )
        self.self_attention = SelfAttention(config)
        self.cross_norm = LayerNorm()
        self.cross_attention = CrossAttention(config, self.implementation)
        self.ffn = FeedForward(config)

    def text_keys_values(self, context_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values (B, T, N, H) of the projected text."""
        return self.cross_attention.keys_values(context_BTD)

    def __call__(
        self,
        x_BLD: jax.Array,
        modulation_B6D: jax.Array,
        rope_2Lh: np.ndarray,
        text_keys_values: tuple[jax.Array, jax.Array],
        text_lengths_B: jax.Array,
        attend_self: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
        keep_2B: jax.Array | None = None,
        attend_text: Callable[..., jax.Array] | None = None,
        generating: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Runs the layer on float32 x.

        Args:
          x_BLD: the residual stream.
          modulation_B6D: `Conditioning.modulation_B6D`.
          rope_2Lh: rotation of these tokens, from `rope.rope_table`.
          text_keys_values, text_lengths_B: one row per prompt P. B is a multiple of P, and equal
            numbers of neighbouring rows of x share a prompt.
          attend_self: maps q, k and v of these tokens to attended values, all (B, L, N, H).
          keep_2B: stochastic depth factors of self-attention and FFN: 0 or 1/(1 − rate).
          attend_text: as in `CrossAttention`.
          generating: chooses what is faster without a gradient.

        Returns:
          The new x, and the keys and values (B, L, N, H) of these tokens.
        """
        rows = modulation_B6D + self.modulation_table[None]
        gate1, gate2, scale1, scale2, shift1, shift2 = (rows[:, i] for i in range(6))
        if keep_2B is not None:
            gate1, gate2 = gate1 * keep_2B[0][:, None], gate2 * keep_2B[1][:, None]

        inner_BLD = modulate(x_BLD, scale1, shift1)
        q, k, v = self.self_attention.project(inner_BLD, rope_2Lh, generating)
        update = self.self_attention.merge(attend_self(q, k, v))
        x_BLD = constrain(x_BLD + gate1[:, None] * update, 'batch', 'length', None)

        # Images of one prompt are neighbours in the batch. Joined, they share its keys and values.
        joined_PLD = self.cross_norm(x_BLD).reshape(text_lengths_B.shape[0], -1, x_BLD.shape[-1])
        update = self.cross_attention(joined_PLD, text_keys_values, text_lengths_B, attend_text)
        x_BLD = x_BLD + update.reshape(x_BLD.shape).astype(jnp.float32)

        inner_BLD = modulate(x_BLD, scale2, shift2).astype(self.config.dtype)
        update = fusion_barrier(
            checkpoint_name(self.ffn(fusion_barrier(inner_BLD), generating), UPDATE)
        )
        x_BLD = constrain(x_BLD + gate2[:, None] * update, 'batch', 'length', None)
        return x_BLD, (k, v)
