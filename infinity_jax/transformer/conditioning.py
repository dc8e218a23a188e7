"""From text features to what conditions the transformer (paper 3.3)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.transformer.layers import HIGHEST, linear
from infinity_jax.transformer.tpu import fusion_barrier

NORM_EPSILON = 1e-6


class Conditioning(NamedTuple):
    """What a prompt contributes.

    Attributes:
      pooled_BD: the attentively pooled text; the condition of all modulation and the first token.
      context_BTD: the projected text that cross-attention reads.
      lengths_B: true lengths of the padded texts.
      modulation_B6D: rows γ1, γ2, s1, s2, b1, b2 shared by all blocks.
    """

    pooled_BD: jax.Array
    context_BTD: jax.Array
    lengths_B: jax.Array
    modulation_B6D: jax.Array


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, float32."""

    @nn.compact
    def __call__(self, x_BTE: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, (x_BTE.shape[-1],))
        x = x_BTE.astype(jnp.float32)
        mean_square = jnp.square(x).mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + NORM_EPSILON) * scale[None, None]


class TextPool(nn.Module):
    """Attentive pooling: one learned query per head attends to the normed text."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, text_BTE: jax.Array, lengths_B: jax.Array, in_blocks: bool = False
    ) -> jax.Array:
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
        keys, values = jnp.split(key_value(text_BTE, in_blocks=in_blocks), 2, axis=-1)
        keys, values = keys.reshape(shape), (values + value_bias[None, None]).reshape(shape)
        scores_BNT = jnp.einsum('nh,btnh->bnt', query_NH, keys, precision=HIGHEST)
        present_BT = jnp.arange(text_BTE.shape[1])[None] < lengths_B[:, None]
        scores_BNT = jnp.where(present_BT[:, None], scores_BNT * head_dim**-0.5, -jnp.inf)
        weights_BNT = jax.nn.softmax(scores_BNT, axis=-1)
        pooled = jnp.einsum('bnt,btnh->bnh', weights_BNT, values, precision=HIGHEST)
        out = linear(config.width, ('heads', 'embed'), std, jnp.float32, name='out')
        return out(pooled.reshape(-1, config.width), in_blocks=in_blocks)


class TextConditioner(nn.Module):
    """Text features to `Conditioning`; float32 at the highest precision throughout."""

    config: TransformerConfig

    def setup(self):
        config = self.config
        std = (1 / (3 * config.width)) ** 0.5
        self.text_norm = RMSNorm()
        self.text_pool = TextPool(config)
        self.text_project_in = linear(config.width, ('embed', 'mlp'), std, jnp.float32)
        self.text_project_out = linear(config.width, ('mlp', 'embed'), std, jnp.float32)
        self.shared_modulation = linear(6 * config.width, ('embed', 'mlp'), std, jnp.float32)

        def uncond_init(key, shape, dtype=jnp.float32):
            # Standard deviation 1.2 before the cut at ±2, then over √E: the text features' size.
            cut = 2 / 1.2
            return jax.random.truncated_normal(key, -cut, cut, shape, dtype) * 1.2 / shape[1] ** 0.5

        self.unconditional_text = self.param(
            'unconditional_text',
            nn.with_logical_partitioning(uncond_init, ('text', 'embed')),
            (config.text_length, config.text_channels),
        )

    def unconditional(self, text_BTE: jax.Array) -> jax.Array:
        """The learned text that stands for "no prompt": as many rows as the padded prompt."""
        length = text_BTE.shape[1]
        if length > self.config.text_length:
            raise UserError(
                f'text of {length} tokens is longer than transformer.text_length '
                f'{self.config.text_length}: pad and cut prompts to at most that'
            )
        rows = self.unconditional_text[:length].astype(text_BTE.dtype)
        return jnp.broadcast_to(rows[None], text_BTE.shape)

    def __call__(
        self, text_BTE: jax.Array, lengths_B: jax.Array, in_blocks: bool = False
    ) -> Conditioning:
        """The condition; `in_blocks` as in `Linear`."""
        taken = {'in_blocks': in_blocks}
        # Float32 products at the highest precision are long programs on a TPU, to compile as well.
        text = fusion_barrier(self.text_norm(text_BTE))
        pooled = self.text_pool(text, lengths_B, **taken)
        hidden = fusion_barrier(nn.gelu(fusion_barrier(self.text_project_in(text, **taken))))
        memory = fusion_barrier(self.text_project_out(hidden, **taken))
        modulation = self.shared_modulation(nn.silu(pooled), **taken)
        modulation_B6D = modulation.reshape(-1, 6, self.config.width)
        return Conditioning(pooled, memory, lengths_B, modulation_B6D)
