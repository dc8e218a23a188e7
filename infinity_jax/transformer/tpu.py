"""Operations whose form is chosen for XLA:TPU; every other platform computes the same values.

- `fusion_barrier` stops XLA:TPU from fusing across a point of the program.
- `tiled_product` splits float32 products into tiles of one shape, which compile once. At the
  highest precision such a product is a long program of six unrolled bfloat16 products. The products
  that generation makes once per image or once per scale differ in rows and features only. Together
  they took the compiler longer than the whole layer of a large scale, for less than a hundredth of
  the device time.
- `in_pieces` splits products of many rows; `channels_last` fixes the order of the axes in memory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from infinity_jax.sharding import target_platform

TILE_ROWS = 256
MAX_TILE_FEATURES = 256
MAX_ROWS, PIECE_ROWS = 4096, 1024  # rows of a product, and of its pieces if it has more
MAX_PIECES = 8  # more would make long programs; the pieces of larger batches have more rows


def fusion_barrier(x: jax.Array) -> jax.Array:
    """Stops XLA:TPU from fusing across this point; on other platforms returns x unchanged.

    Without it, the compiler computes an x that two matrix products read inside both of them, which
    takes longer. It also compiles equal products again when the operations fused with them differ.
    """
    return jax.lax.optimization_barrier(x) if target_platform() == 'tpu' else x


def uses_tiles() -> bool:
    """Whether the forms below save time: on a single TPU chip. Several chips split the rows."""
    return target_platform() == 'tpu' and jax.sharding.get_abstract_mesh().size <= 1


def channels_last(x: jax.Array) -> jax.Array:
    """Keeps the last axis minor in the memory of a TPU chip.

    Large scales would get their tokens as the minor axis, whose products take longer.
    """
    if not uses_tiles():
        return x
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def in_pieces(function: Callable[[jax.Array], jax.Array], x_BLD: jax.Array) -> jax.Array:
    """`function(x)` of (B, L, …), on one TPU chip computed for some of many tokens at a time.

    XLA:TPU chooses poor tiles for products of more than `MAX_ROWS` rows, whose operands lie outside
    of its vector memory. Of the 2B's FFN at 64² tokens, one image with guidance, they take 98 ms in
    pieces instead of 125 on a v5e, and 33 instead of 53 on a v6e, by the compiler's count. Batches
    whose pieces would have `MAX_ROWS` rows themselves stay whole.
    """
    batch, length = x_BLD.shape[:2]
    rows = batch * length
    if not MAX_ROWS < rows < MAX_PIECES * MAX_ROWS or not uses_tiles():
        return function(x_BLD)
    least = min(-(-rows // PIECE_ROWS), MAX_PIECES)
    count = next((n for n in range(least, MAX_PIECES + 1) if length % n == 0), min(least, length))
    parts = jnp.array_split(x_BLD, count, axis=1)
    return jnp.concatenate([function(part) for part in parts], axis=1)


def tiled_product(
    product: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """`product(x, kernel)`, computed in tiles of `TILE_ROWS` rows and one number of features.

    Args:
      product: (rows, inputs) and (inputs, features) to (rows, features).
      x: (…, inputs).
      kernel: (inputs, features).
    """
    inputs, features = kernel.shape
    tile_features = max(n for n in range(1, MAX_TILE_FEATURES + 1) if features % n == 0)
    rows = x.reshape(-1, inputs)
    padded = jnp.pad(rows, ((0, -len(rows) % TILE_ROWS), (0, 0)))
    row_tiles = padded.reshape(-1, TILE_ROWS, inputs)

    def columns_from(start: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(kernel, start, tile_features, axis=1)
        part = fusion_barrier(part)
        one_tile = lambda tile: fusion_barrier(product(fusion_barrier(tile), part))
        return jax.lax.map(one_tile, row_tiles).reshape(-1, tile_features)[: len(rows)]

    y = jax.lax.map(columns_from, jnp.arange(0, features, tile_features))
    return y.swapaxes(0, 1).reshape(*x.shape[:-1], features)
