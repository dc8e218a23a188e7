"""The preallocated key/value cache of generation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from infinity_jax.config import TransformerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import activation_spec, constrain, target_platform
from infinity_jax.transformer.int8 import Int8
from infinity_jax.transformer.splash import whole_blocks

AXES = (None, 'batch', 'heads', None, None)  # logical ones of keys and values; scales lack the last


class KeyValueCache(NamedTuple):
    """Keys and values of all layers, (layers, B, N, S, H), carried through the scan over layers.

    S counts the tokens of every scale but the last, whose keys nothing reads later: at 1024² that
    saves 39 % of the bytes. On TPU it is filled up to whole blocks of splash attention.

    Heads come first, as products and kernels want them.
    """

    keys: jax.Array | Int8
    values: jax.Array | Int8

    @classmethod
    def empty(
        cls, config: TransformerConfig, schedule: ScaleSchedule, batch: int, int8: bool = False
    ) -> 'KeyValueCache':
        """A cache without tokens, for keys and values of the products' dtype or in 8 bits."""
        tokens = schedule.spans[-1][0]
        if target_platform() == 'tpu':
            tokens = whole_blocks(tokens, tokens)
        shape = (config.depth, batch, config.num_heads, tokens, config.head_dim)
        zeros = jnp.zeros(shape, jnp.int8 if int8 else jnp.dtype(config.dtype))
        zeros = constrain(zeros, *AXES)
        if int8:
            scales = constrain(jnp.zeros(shape[:-1]), *AXES[:-1])
            zeros = Int8(zeros, scales)
        return cls(zeros, zeros)

    @property
    def tokens(self) -> int:
        """How many it has room for."""
        return jax.tree.leaves(self.keys)[0].shape[3]

    def prefix(
        self, layer: jax.Array, end: int, rows: int, dtype: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values (rows, N, end, H) of one layer's tokens [0, end), as `dtype`.

        `end` and `rows`, which are the first of the batch, are static.
        """

        def read(stored):
            def of_layer(x):
                # In one step: an index of the layer first would copy all of its tokens.
                sizes = (1, rows, x.shape[2], end, *x.shape[4:])
                origin = (layer, *(0 for _ in sizes[1:]))
                return jax.lax.dynamic_slice(x, origin, sizes)[0]

            found = jax.tree.map(of_layer, stored)
            return found.as_dtype(dtype) if isinstance(found, Int8) else found

        return read(self.keys), read(self.values)

    def store(self, layer: jax.Array, start: int, k_BNLH, v_BNLH) -> 'KeyValueCache':
        """The cache with one layer's keys and values of tokens from `start` on, in first rows."""

        def write(stored, new):
            if isinstance(stored, Int8):
                new = Int8.of(new)

            def update(old, x):
                origin = (layer, 0, 0, start, *(0 for _ in x.shape[3:]))
                return _as_written(jax.lax.dynamic_update_slice(old, x[None], origin))

            return jax.tree.map(update, stored, new)

        return KeyValueCache(write(self.keys, k_BNLH), write(self.values, v_BNLH))


def _as_written(x: jax.Array) -> jax.Array:
    """`x`, on TPU with its axes in memory in the order that they have here.

    Left to itself, the compiler gives small scales' loops another order than large ones', and
    copies the whole cache between them, which then exists several times.
    """
    if target_platform() != 'tpu':
        return x
    hold = lambda x: with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
    if jax.sharding.get_abstract_mesh().empty:
        return hold(x)
    # Each device its own share: the compiler would gather the whole cache for the constraint.
    spec = activation_spec(x.shape, AXES[: x.ndim])
    return jax.shard_map(hold, in_specs=spec, out_specs=spec, check_vma=False)(x)
