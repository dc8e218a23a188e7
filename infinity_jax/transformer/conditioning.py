"""Text features to the arrays that condition the transformer (paper 3.3)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.text.t5 import RMSNorm
from infinity_jax.transformer.layers import HIGHEST, MATRIX, linear
from infinity_jax.transformer.tpu import fusion_barrier


class Conditioning(NamedTuple):
    """The arrays that condition the transformer on a prompt.

    Attributes:
      pooled_BD: the attentively pooled text, which sets the first token and all modulation.
      context_BTD: the projected text, which cross-attention reads.
      lengths_B: number of real tokens of each padded text.
      modulation_B6D: rows γ1, γ2, s1, s2, b1, b2 shared by all blocks.
    """

    pooled_BD: jax.Array
    context_BTD: jax.Array
    lengths_B: jax.Array
    modulation_B6D: jax.Array


class TextPool(nn.Module):
    """Attentive pooling: one learned query per head attends to the normalised text."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, text_BTE: jax.Array, lengths_B: jax.Array, tiled: bool = False) -> jax.Array:
        """Text (B, T, E) to (B, D); `tiled` as in `Linear`."""
        config = self.config
        heads, head_dim = config.pool_heads, config.width // config.pool_heads
        std = (1 / (3 * config.width)) ** 0.5
        query_NH = self.param('query', nn.initializers.normal(std), (heads, head_dim))
        value_bias = self.param('value_bias', nn.initializers.zeros, (config.width,))
        key_value = linear(
            2 * config.width,
            ('embed', 'heads'),
            std,
            jnp.float32,
            use_bias=False,
            name='key_value',
        )
        shape = (*text_BTE.shape[:2], heads, head_dim)
        keys, values = jnp.split(key_value(text_BTE, tiled=tiled), 2, axis=-1)
        keys, values = keys.reshape(shape), (values + value_bias[None, None]).reshape(shape)
        scores_BNT = jnp.einsum('NH,BTNH->BNT', query_NH, keys, precision=HIGHEST)
        present_BT = jnp.arange(text_BTE.shape[1])[None] < lengths_B[:, None]
        scores_BNT = jnp.where(present_BT[:, None], scores_BNT * head_dim**-0.5, -jnp.inf)
        weights_BNT = jax.nn.softmax(scores_BNT, axis=-1)
        pooled_BNH = jnp.einsum('BNT,BTNH->BNH', weights_BNT, values, precision=HIGHEST)
        out = linear(config.width, ('heads', 'embed'), std, jnp.float32, name='out')
        return out(pooled_BNH.reshape(-1, config.width), tiled=tiled)


class TextConditioner(nn.Module):
    """Text features to `Conditioning`; float32 at the highest precision throughout."""

    config: TransformerConfig

    def setup(self):
        config = self.config
        std = (1 / (3 * config.width)) ** 0.5
        self.text_norm = RMSNorm(axes=(None,))  # whole on every device
        self.text_pool = TextPool(config)
        self.text_project_in = linear(config.width, ('embed', 'mlp'), std, jnp.float32)
        self.text_project_out = linear(config.width, ('mlp', 'embed'), std, jnp.float32)
        self.shared_modulation = linear(6 * config.width, ('embed', 'mlp'), std, jnp.float32)

        def uncond_init(key, shape, dtype=jnp.float32):
            # Deviation 1.2, truncated at ±2 and divided by √E: the magnitude of the text features.
            cut = 2 / 1.2
            return jax.random.truncated_normal(key, -cut, cut, shape, dtype) * 1.2 / shape[1] ** 0.5

        self.unconditional_text = self.param(
            'unconditional_text',
            MATRIX(uncond_init, ('text', 'embed')),
            (config.text_length, config.text_channels),
        )

    def unconditional(self, text_BTE: jax.Array) -> jax.Array:
        """The learned text of an empty prompt (B, T, E), T as in the padded prompts.

        Raises:
          UserError: T exceeds `config.text_length`.
        """
        length = text_BTE.shape[1]
        if length > self.config.text_length:
            raise UserError(
                f'text of {length} tokens is longer than transformer.text_length '
                f'{self.config.text_length}: pad and cut prompts to at most that'
            )
        rows = self.unconditional_text[:length].astype(text_BTE.dtype)
        return jnp.broadcast_to(rows[None], text_BTE.shape)

    def __call__(
        self, text_BTE: jax.Array, lengths_B: jax.Array, tiled: bool = False
    ) -> Conditioning:
        """Conditions on text (B, T, E) of these true lengths; `tiled` as in `Linear`."""
        # On a TPU, float32 products at the highest precision take long to compile. The barriers
        # keep them free of other operations, so that equal products compile once.
        text = fusion_barrier(self.text_norm(text_BTE))
        pooled_BD = self.text_pool(text, lengths_B, tiled)
        hidden = fusion_barrier(self.text_project_in(text, tiled=tiled))
        hidden = fusion_barrier(nn.gelu(hidden))
        context_BTD = fusion_barrier(self.text_project_out(hidden, tiled=tiled))
        modulation = self.shared_modulation(nn.silu(pooled_BD), tiled=tiled)
        modulation_B6D = modulation.reshape(-1, 6, self.config.width)
        return Conditioning(pooled_BD, context_BTD, lengths_B, modulation_B6D)
