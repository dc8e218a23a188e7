"""A T5 v1.1 encoder in linen, the architecture of Flan-T5 (Raffel et al. 2020; Shazeer 2020)."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TextConfig

Array = jax.Array
NORM_EPSILON = 1e-6


def position_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """The relative position bucket of every (query, key) pair, int32 (length, length).

    As in T5's encoder, half of the buckets are for keys before the query and half for keys after
    it. In each half, the first half counts single positions, and the rest grows logarithmically
    up to `max_distance`.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]  # key minus query
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # float32, step by step as the released models were trained: a float64 logarithm could put a
    # distance on the other side of a bucket's border.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + np.maximum(steps, 0).astype(np.int32), half - 1)
    return (np.where(distance < exact, distance, far) + half * (offset > 0)).astype(np.int32)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis of (B, T, E), without mean or bias, in float32.

    Also normalises the text features that the transformer reads.

    Attributes:
      axes: logical axis of the learned scale.
    """

    axes: tuple[str | None] = ('embed',)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init: Callable[..., Any] = nn.with_logical_partitioning(
            nn.initializers.ones_init(), self.axes
        )
        scale = self.param('scale', init, (x.shape[-1],))
        # float32: the mean of squares of T5's large activations overflows 16 bits.
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + NORM_EPSILON)
        return x * inverse * scale[None, None]


class EncoderLayer(nn.Module):
    """Self-attention and a gated-GELU feed-forward, both pre-norm and without biases."""

    config: TextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTE: Array, bias_BNTT: Array) -> tuple[Array, None]:
        """x_BTE: the float32 residual stream; bias_BNTT: position bias, hugely negative at padding.

        Returns the new x_BTE and None, the pair that `nn.scan` expects.
        """
        c, dtype = self.config, self.dtype
        inner = c.num_heads * c.head_dim
        batch, length, _ = x_BTE.shape

        # The feed-forward's hidden values can exceed float16, which transformers multiplies in
        # float32 there as well.
        wide = jnp.float32 if dtype == jnp.float16 else dtype

        def linear(name, features, fan_in, axes, dtype=dtype):
            init = nn.with_logical_partitioning(nn.initializers.normal(fan_in**-0.5), axes)
            return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)

        def heads(x):
            return x.reshape(batch, length, c.num_heads, c.head_dim)

        h_BTE = RMSNorm(name='attention_norm')(x_BTE).astype(dtype)
        # Without a 1/sqrt(H) factor in attention, the query's initial values include it.
        q = heads(linear('query', inner, c.width * c.head_dim, ('embed', 'heads'))(h_BTE))
        k = heads(linear('key', inner, c.width, ('embed', 'heads'))(h_BTE))
        v = heads(linear('value', inner, c.width, ('embed', 'heads'))(h_BTE))
        # float32 scores and softmax: unscaled T5 scores lose their order in 16 bits.
        scores = jnp.einsum('BQNH,BKNH->BNQK', q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores + bias_BNTT, axis=-1).astype(dtype)
        mixed = jnp.einsum('BNQK,BKNH->BQNH', weights, v).reshape(batch, length, inner)
        x_BTE = x_BTE + linear('out', c.width, inner, ('heads', 'embed'))(mixed)

        h_BTE = RMSNorm(name='ffn_norm')(x_BTE).astype(dtype)
        gate = linear('ffn_gate', c.ffn_width, c.width, ('embed', 'mlp'))(h_BTE)
        up = linear('ffn_up', c.ffn_width, c.width, ('embed', 'mlp'))(h_BTE)
        down = linear('ffn_down', c.width, c.ffn_width, ('mlp', 'embed'), wide)
        return x_BTE + down(nn.gelu(gate.astype(wide), approximate=True) * up.astype(wide)), None


class T5Encoder(nn.Module):
    """The encoder: token ids to text features.

    Attributes:
      config: the dimensions.
      dtype: of the matrix products. Residual stream, norms and softmax are always float32. For
        parity use float32 under `jax.default_matmul_precision('highest')`.
    """

    config: TextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids_BT: Array, lengths_B: Array) -> Array:
        """Encodes padded prompts.

        Args:
          ids_BT: int32 token ids, end token included, with any padding after the lengths.
          lengths_B: int32 true lengths. Later tokens are masked.

        Returns:
          float32 (B, T, E). Rows after the lengths are meaningless.
        """
        c = self.config
        axes: Callable[..., Callable[..., Any]] = nn.with_logical_partitioning
        table_VE = self.param(
            'token_embedding',
            axes(nn.initializers.normal(1.0), ('vocab', 'embed')),
            (c.vocab_size, c.width),
        )
        bias_bN = self.param(
            'relative_bias',
            axes(nn.initializers.normal(c.width**-0.5), (None, 'heads')),
            (c.buckets, c.num_heads),
        )
        length = ids_BT.shape[1]
        # All layers share one table, which the first block has in the released weights.
        bias_TTN = bias_bN[position_buckets(length, c.buckets, c.max_distance)]
        seen_B11T = (jnp.arange(length)[None] < lengths_B[:, None])[:, None, None]
        bias_BNTT = jnp.where(
            seen_B11T,
            jnp.expand_dims(bias_TTN.transpose(2, 0, 1).astype(jnp.float32), 0),
            jnp.finfo(jnp.float32).min / 2,  # finite, so that a row of padding stays free of NaN
        )
        layers = nn.scan(
            EncoderLayer,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=nn.broadcast,
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )(c, self.dtype, name='layers')
        x_BTE, _ = layers(table_VE[ids_BT].astype(jnp.float32), bias_BNTT)
        return RMSNorm(name='final_norm')(x_BTE)
