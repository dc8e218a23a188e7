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

# Logical axes of keys and values; int8 scales lack the last.
AXES = (None, 'batch', 'heads', None, None)


class KeyValueCache(NamedTuple):
    """Keys and values of all layers, (layers, B, N, S, H), carried through the scan over layers.

    S counts the tokens of every scale but the last, whose keys nothing reads later: at 1024² that
    saves 39 % of the bytes. On TPU, S is rounded up to whole blocks of splash attention.

    Attributes:
      keys, values: in the dtype of the products, or in 8 bits with one scale per head and token.
    """

    keys: jax.Array | Int8
    values: jax.Array | Int8

    @classmethod
    def empty(
        cls, config: TransformerConfig, schedule: ScaleSchedule, batch: int, int8: bool = False
    ) -> 'KeyValueCache':
        """A cache without tokens, in `config.dtype` or in 8 bits."""
        tokens = schedule.spans[-1][0]
        if target_platform() == 'tpu':
            tokens = whole_blocks(tokens, tokens)
        shape = (config.depth, batch, config.num_heads, tokens, config.head_dim)
        zeros = jnp.zeros(shape, jnp.int8 if int8 else jnp.dtype(config.dtype))
        zeros = constrain(zeros, *AXES)
        if not int8:
            return cls(zeros, zeros)
        empty = Int8(zeros, constrain(jnp.zeros(shape[:-1]), *AXES[:-1]))
        return cls(empty, empty)

    @property
    def tokens(self) -> int:
        """S: the number of tokens that the cache has room for."""
        return jax.tree.leaves(self.keys)[0].shape[3]

    def prefix(
        self, layer: jax.Array, end: int, rows: int, dtype: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values (rows, N, end, H) of one layer's tokens [0, end), in `dtype`.

        `end` is static, and so is `rows`, the number of leading batch rows to read.
        """

        def read(stored):
            def of_layer(x):
                # One slice for all axes: indexing the layer first would copy all of its tokens.
                sizes = (1, rows, x.shape[2], end, *x.shape[4:])
                origin: list[Any] = [layer, *(0 for _ in sizes[1:])]
                part = jax.lax.dynamic_slice(x, origin, sizes)
                # The last scale stores nothing. Of one row it would read tokens before layers.
                return (_in_one_layout(part) if target_platform() == 'gpu' else part)[0]

            prefix = jax.tree.map(of_layer, stored)
            return prefix.as_dtype(dtype) if isinstance(prefix, Int8) else prefix

        return read(self.keys), read(self.values)

    def store(self, layer: jax.Array, start: int, k_BNLH, v_BNLH) -> 'KeyValueCache':
        """Writes one layer's keys and values of the tokens from `start`, in the leading rows."""

        def write(stored, new):
            if isinstance(stored, Int8):
                new = Int8.of(new)

            def update(old, x):
                origin: list[Any] = [layer, 0, 0, start, *(0 for _ in x.shape[3:])]
                return _in_one_layout(jax.lax.dynamic_update_slice(old, x[None], origin))

            return jax.tree.map(update, stored, new)

        return KeyValueCache(write(self.keys, k_BNLH), write(self.values, v_BNLH))


def _in_one_layout(x: jax.Array) -> jax.Array:
    """Constrains the axes of keys and values (layers, B, N, S, H), or their scales, in memory.

    The order is that in which the platform's kernels read: on a TPU heads before tokens, on a GPU
    tokens before heads. Otherwise the compiler chooses one order for the loops of small scales and
    another for those of large scales, and copies the whole cache between them, which then exists
    several times. A CPU has no such kernels.
    """
    platform = target_platform()
    if platform == 'cpu':
        return x
    order = list(range(x.ndim))
    if platform == 'gpu':
        order[2:4] = 3, 2
    layout = Layout(major_to_minor=tuple(order))
    constrain_order = lambda part: with_layout_constraint(part, layout)
    if jax.sharding.get_abstract_mesh().empty:
        return constrain_order(x)
    # Per device: for a constraint on the global array, the compiler would gather the whole cache.
    spec = activation_spec(x.shape, AXES[: x.ndim])
    return jax.shard_map(constrain_order, in_specs=spec, out_specs=spec, check_vma=False)(x)
