"""Operations whose form is chosen for XLA:TPU; every other platform computes the same values.

- `normalize_and_rotate` prepares queries and keys without moving numbers between lanes.
- `fusion_barrier` stops XLA:TPU from fusing across a point of the program.
- `tiled_product` splits float32 products into tiles of one shape, which compile once. At the
  highest precision such a product is a long program of six unrolled bfloat16 products. The products
  that generation makes once per image or once per scale differ in rows and features only. Together
  they took the compiler longer than the whole layer of a large scale, for less than a hundredth of
  the device time.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from infinity_jax.sharding import target_platform
from infinity_jax.transformer.rope import rotate, rotate_swapped, swap_pairs

NORM_EPSILON = 1e-12
NO_LENGTH = 1e-6  # a query or key this short is rounding: without direction, so without gradient
ROTATED = 'rotated'  # checkpoint name of rotated queries and keys, for `remat.POLICIES`
TILE_ROWS = 256
MAX_TILE_FEATURES = 256


def normalize_and_rotate(
    x: jax.Array, rope_2Lh: np.ndarray, scale_N: jax.Array | None = None, *, heads_axis: int = 2
) -> jax.Array:
    """L2-normalises queries or keys over the last axis, scales them per head and rotates them.

    Computes in float32 and returns the dtype of x. The gradient is written out. With s the scale
    and R the rotation, y = s·R(x/|x|) gives dx = s/|x| · Rᵀ(g − y (y·g)/s²) and ds = Σ y·g/s. It
    reads y and |x| alone, and attention keeps y for its own gradient anyway.

    Args:
      x: (B, L, N, H), or with `heads_axis` 1 (B, N, L, H).
      rope_2Lh: from `rope.rope_table`.
      scale_N: one scale per head; None: no scale.
      heads_axis: the axis of x that holds the heads, 1 or 2.
    """
    if scale_N is None:
        scale_N = jnp.ones(x.shape[heads_axis], jnp.float32)
    run = jax.custom_vjp(lambda *args: _rotated_forward(rope_2Lh, heads_axis, *args)[0])
    run.defvjp(
        functools.partial(_rotated_forward, rope_2Lh, heads_axis),
        functools.partial(_rotated_backward, rope_2Lh, heads_axis),
    )
    return run(x, scale_N)


def _rotated_forward(rope_2Lh, heads_axis, x, scale_N):
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    length = checkpoint_name(jnp.sqrt(jnp.maximum(square, NORM_EPSILON**2)), ROTATED)
    y = _rotate_and_multiply(x, rope_2Lh, heads_axis, _per_head(scale_N, heads_axis) / length)
    y = checkpoint_name(y.astype(x.dtype), ROTATED)
    return y, (y, length, scale_N)


def _rotated_backward(rope_2Lh, heads_axis, residuals, g):
    y, length, scale_N = residuals
    scale, inverse_2Lh = (
        _per_head(scale_N, heads_axis),
        rope_2Lh * np.array([[[1]], [[-1]]], np.float32),
    )
    along = jnp.sum(y.astype(jnp.float32) * g.astype(jnp.float32), axis=-1, keepdims=True)
    across = g.astype(jnp.float32) - y.astype(jnp.float32) * (along / jnp.square(scale))
    slope = jnp.where(length > NO_LENGTH, scale / length, 0.0)
    dx = _rotate_and_multiply(across.astype(y.dtype), inverse_2Lh, heads_axis, slope)
    return dx.astype(y.dtype), jnp.sum(along, _axes_except(heads_axis)) / scale_N


def _per_head(scale_N: jax.Array, heads_axis: int) -> jax.Array:
    """One number per head, with axes of size 1 for all others."""
    return jnp.expand_dims(scale_N, _axes_except(heads_axis))


def _axes_except(heads_axis: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(4) if axis != heads_axis)


def _rotate_and_multiply(
    x: jax.Array, rope_2Lh: np.ndarray, heads_axis: int, factor: jax.Array
) -> jax.Array:
    """factor · R x, float32."""
    if target_platform() != 'tpu':
        return rotate(x.astype(jnp.float32) * factor, rope_2Lh, heads_axis)
    swapped = swap_pairs(x).astype(jnp.float32)  # exact, and so computed in the dtype of x
    return rotate_swapped(x.astype(jnp.float32), swapped, rope_2Lh, heads_axis) * factor


def fusion_barrier(x: jax.Array) -> jax.Array:
    """Stops XLA:TPU from fusing across this point; on other platforms returns x unchanged.

    Without it, the compiler computes an x that two matrix products read inside both of them, which
    takes longer. It also compiles equal products again when the operations fused with them differ.
    """
    return jax.lax.optimization_barrier(x) if target_platform() == 'tpu' else x


def uses_tiles() -> bool:
    """Whether `tiled_product` saves time: on a single TPU chip. Several chips split the rows."""
    return target_platform() == 'tpu' and jax.sharding.get_abstract_mesh().size <= 1


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
