"""The preallocated key/value cache of generation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from infinity_jax.config import TransformerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import constrain


class KeyValueCache(NamedTuple):
    """Keys and values of all layers, (layers, B, S, N, H), carried through the scan over layers.

    S counts the tokens of every scale but the last, whose keys nothing reads later: at 1024² that
    saves 39 % of the bytes.
    """

    keys: jax.Array
    values: jax.Array

    @classmethod
    def empty(
        cls, config: TransformerConfig, schedule: ScaleSchedule, batch: int
    ) -> 'KeyValueCache':
        tokens = schedule.spans[-1][0]
        shape = (config.depth, batch, tokens, config.num_heads, config.head_dim)
        zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
        zeros = constrain(zeros, None, 'batch', None, 'heads', None)
        return cls(zeros, zeros)

    def prefix(self, layer: jax.Array, end: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values (B, end, N, H) of one layer's tokens [0, end); `end` is static."""

        def read(stored):
            of_layer = jax.lax.dynamic_index_in_dim(stored, layer, keepdims=False)
            return of_layer[:, :end]

        return read(self.keys), read(self.values)

    def store(self, layer: jax.Array, start: int, k_BLNH, v_BLNH) -> 'KeyValueCache':
        """The cache with one layer's keys and values of tokens from `start` on."""

        def write(stored, new):
            return jax.lax.dynamic_update_slice(stored, new[None], (layer, 0, start, 0, 0))

        return KeyValueCache(write(self.keys, k_BLNH), write(self.values, v_BLNH))
