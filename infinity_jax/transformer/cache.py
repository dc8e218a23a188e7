"""The preallocated key/value cache of generation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infinity_jax.config import TransformerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import constrain
from infinity_jax.transformer.int8 import Int8


class KeyValueCache(NamedTuple):
    """Keys and values of all layers, (layers, B, S, N, H), carried through the scan over layers.

    S counts the tokens of every scale but the last, whose keys nothing reads later: at 1024² that
    saves 39 % of the bytes.
    """

    keys: jax.Array | Int8
    values: jax.Array | Int8

    @classmethod
    def empty(
        cls, config: TransformerConfig, schedule: ScaleSchedule, batch: int, int8: bool = False
    ) -> 'KeyValueCache':
        """A cache without tokens, for keys and values of the products' dtype or in 8 bits."""
        tokens = schedule.spans[-1][0]
        shape = (config.depth, batch, tokens, config.num_heads, config.head_dim)
        zeros = jnp.zeros(shape, jnp.int8 if int8 else jnp.dtype(config.dtype))
        zeros = constrain(zeros, None, 'batch', None, 'heads', None)
        if int8:
            scales = constrain(jnp.zeros(shape[:-1]), None, 'batch', None, 'heads')
            zeros = Int8(zeros, scales)
        return cls(zeros, zeros)

    def prefix(
        self, layer: jax.Array, end: int, rows: int, dtype: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values (rows, end, N, H) of one layer's tokens [0, end), as `dtype`.

        `end` and `rows`, which are the first of the batch, are static.
        """

        def read(stored):
            of_layer = jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)[:rows, :end],
                stored,
            )
            return of_layer.as_dtype(dtype) if isinstance(of_layer, Int8) else of_layer

        return read(self.keys), read(self.values)

    def store(self, layer: jax.Array, start: int, k_BLNH, v_BLNH) -> 'KeyValueCache':
        """The cache with one layer's keys and values of tokens from `start` on, in first rows."""

        def write(stored, new):
            if isinstance(stored, Int8):
                new = Int8.of(new)

            def update(old, x):
                origin = (layer, 0, start, *(0 for _ in x.shape[2:]))
                return jax.lax.dynamic_update_slice(old, x[None], origin)

            return jax.tree.map(update, stored, new)

        return KeyValueCache(write(self.keys, k_BLNH), write(self.values, v_BLNH))
