"""The parameters of self-attention over scales and of cross-attention to text (paper 3.3).

The queries of scale k attend to the keys [0, end of scale k), which needs no mask. Small scales are
cheaper together, under one small mask; large ones are attended alone, each to its own slice of the
keys. `attention_ops` has the operations.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TransformerConfig
from infinity_jax.sharding import target_platform
from infinity_jax.transformer.attention_ops import attend
from infinity_jax.transformer.layers import VECTOR, linear
from infinity_jax.transformer.rope import normalize_and_rotate
from infinity_jax.transformer.tpu import in_pieces

MAX_LOG_SCALE = np.log(100.0).astype(np.float32)


class SelfAttention(nn.Module):
    """Cosine attention: unit queries and keys, one learned scale per head, then 2-D RoPE.

    The caller attends between `project` and `merge`, because training attends within the sequence
    and generation to a cache.
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

    def project(
        self, x_BLD: jax.Array, rope_2Lh: np.ndarray, generating: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values (B, L, N, H) in `config.dtype`; the first two are rotated.

        They come from a single product, but while training on a TPU from three, which is faster
        there; in generation the three would each wait for a shared copy of the kernel.
        """
        scale = jnp.exp(jnp.minimum(self.log_scale, MAX_LOG_SCALE))
        heads_first = target_platform() == 'tpu'
        separate = heads_first and not generating
        q, k, v = self._three_products(x_BLD) if separate else self._one_product(x_BLD)
        if heads_first and not separate:
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        # Norm, scale and rotation are a float32 island: angles lose meaning in bfloat16.
        axis = 1 if heads_first else 2
        q = normalize_and_rotate(q, rope_2Lh, scale, heads_axis=axis)
        k = normalize_and_rotate(k, rope_2Lh, heads_axis=axis)
        if heads_first:
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        return q, k, v

    def _one_product(self, x_BLD: jax.Array) -> list[jax.Array]:
        """Queries, keys and values (B, L, N, H) from a single product."""
        dtype = jnp.dtype(self.config.dtype)
        no_key_bias = jnp.zeros_like(self.query_bias)
        bias = jnp.concatenate([self.query_bias, no_key_bias, self.value_bias]).astype(dtype)
        qkv = in_pieces(lambda x: self.qkv(x) + bias[None, None], x_BLD)
        shape = (*x_BLD.shape[:2], self.config.num_heads, self.config.head_dim)
        return [part.reshape(shape) for part in jnp.split(qkv, 3, axis=-1)]

    def _three_products(self, x_BLD: jax.Array) -> list[jax.Array]:
        """The same (B, N, L, H), from three products: a TPU writes what its kernels then read."""
        heads, head_dim = self.config.num_heads, self.config.head_dim
        parts = self.qkv(x_BLD, parts=3)
        q, k, v = (part.reshape(*x_BLD.shape[:2], heads, head_dim).swapaxes(1, 2) for part in parts)
        q_bias, v_bias = (
            bias.astype(q.dtype).reshape(1, heads, 1, head_dim)
            for bias in (self.query_bias, self.value_bias)
        )
        return [q + q_bias, k, v + v_bias]

    def merge(self, attended_BLNH: jax.Array) -> jax.Array:
        """Projects the heads' values (B, L, N, H) back to (B, L, D)."""
        return self.out(attended_BLNH, contract=2)


class CrossAttention(nn.Module):
    """Attention from tokens to the projected text; padding is masked by length.

    Attributes:
      config: sizes.
      implementation: as in `attention_choice.choose`.
    """

    config: TransformerConfig
    implementation: str = 'auto'

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        std, width = (1 / (3 * config.width)) ** 0.5, config.width
        self.query = linear(width, ('embed', 'heads'), std, dtype)
        self.key_value = linear(2 * width, ('embed', 'heads'), std, dtype, use_bias=False)
        self.value_bias = self.param('value_bias', VECTOR(nn.initializers.zeros), (width,))
        self.out = linear(width, ('heads', 'embed'), std / (2 * config.depth) ** 0.5, dtype)

    def keys_values(self, context_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values (B, T, N, H) of the text, which are the same at every scale."""
        shape = (*context_BTD.shape[:2], self.config.num_heads, self.config.head_dim)
        keys, values = jnp.split(self.key_value(context_BTD), 2, axis=-1)
        values = values + self.value_bias.astype(values.dtype)[None, None]
        return keys.reshape(shape), values.reshape(shape)

    def __call__(
        self,
        x_BLD: jax.Array,
        keys_values: tuple[jax.Array, jax.Array],
        text_lengths_B: jax.Array,
        attend_text: Callable[..., jax.Array] | None = None,
    ) -> jax.Array:
        """Attends from tokens to text; returns (B, L, D).

        Args:
          x_BLD: tokens.
          keys_values: from `keys_values`, or in a layout that `attend_text` reads.
          text_lengths_B: number of real tokens of each padded text.
          attend_text: replaces `attention_ops.attend`, with its arguments q_BLNH, keys, values,
            key_lengths_B and scale.
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
