"""Queries and keys as directions: normalised, scaled and rotated, in float32.

The gradient is written out. With s the scale and R the rotation, y = s·R(x/|x|) gives
dx = s/|x| · Rᵀ(g − y (y·g)/s²) and ds = Σ y·g/s: it reads y and |x| alone, and y is what attention
keeps for its own gradient anyway.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from infinity_jax.sharding import target_platform
from infinity_jax.transformer.rope import rotate, rotate_swapped, swap_pairs

EPSILON = 1e-12
NO_LENGTH = 1e-6  # a query or key this short is rounding: without direction, so without gradient
ROTATED = 'rotated'  # name of what a rematerialisation policy may keep


def normalize_and_rotate(
    x: jax.Array, rope_2Lh: np.ndarray, scale_N: jax.Array | None = None, *, heads_axis: int = 2
) -> jax.Array:
    """L2-normalised over the last axis, scaled, then rotated; in float32, returned in x's dtype.

    Args:
      x: (B, L, N, H), or with `heads_axis` 1 (B, N, L, H).
      rope_2Lh: `rope.rope_table`.
      scale_N: one a head; None: no scale.
    """
    if scale_N is None:
        scale_N = jnp.ones(x.shape[heads_axis], jnp.float32)
    run = jax.custom_vjp(lambda *args: _forward(rope_2Lh, heads_axis, *args)[0])
    run.defvjp(
        functools.partial(_forward, rope_2Lh, heads_axis),
        functools.partial(_backward, rope_2Lh, heads_axis),
    )
    return run(x, scale_N)


def _forward(rope_2Lh, heads_axis, x, scale_N):
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    length = checkpoint_name(jnp.sqrt(jnp.maximum(square, EPSILON**2)), ROTATED)
    y = _turn(x, rope_2Lh, heads_axis, _by_head(scale_N, heads_axis) / length)
    y = checkpoint_name(y.astype(x.dtype), ROTATED)
    return y, (y, length, scale_N)


def _backward(rope_2Lh, heads_axis, kept, g):
    y, length, scale_N = kept
    scale, back = _by_head(scale_N, heads_axis), rope_2Lh * np.float32([[[1]], [[-1]]])
    along = jnp.sum(y.astype(jnp.float32) * g.astype(jnp.float32), axis=-1, keepdims=True)
    across = g.astype(jnp.float32) - y.astype(jnp.float32) * (along / jnp.square(scale))
    slope = jnp.where(length > NO_LENGTH, scale / length, 0.0)
    dx = _turn(across.astype(y.dtype), back, heads_axis, slope)
    return dx.astype(y.dtype), jnp.sum(along, _but(heads_axis)) / scale_N


def _by_head(scale_N: jax.Array, heads_axis: int) -> jax.Array:
    return jnp.expand_dims(scale_N, _but(heads_axis))


def _but(heads_axis: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(4) if axis != heads_axis)


def _turn(x: jax.Array, rope_2Lh: np.ndarray, heads_axis: int, factor: jax.Array) -> jax.Array:
    """factor · R x, float32."""
    if target_platform() != 'tpu':
        return rotate(x.astype(jnp.float32) * factor, rope_2Lh, heads_axis)
    swapped = swap_pairs(x).astype(jnp.float32)  # exact, so in the dtype that x comes in
    return rotate_swapped(x.astype(jnp.float32), swapped, rope_2Lh, heads_axis) * factor


def fusion_barrier(x: jax.Array) -> jax.Array:
    """x, as an array of its own in a program for TPU; elsewhere x as it is.

    The compiler would otherwise make an x that two matrix products read twice, inside of them,
    which takes longer; and products that are equal but for what is joined to them, it compiles
    again.
    """
    return jax.lax.optimization_barrier(x) if target_platform() == 'tpu' else x


ROWS = 256
FEATURES = 256  # at most


def pays() -> bool:
    """Whether blocks are worth while: on one TPU chip; several share the rows out instead."""
    return target_platform() == 'tpu' and jax.sharding.get_abstract_mesh().size <= 1


def tiled(
    product: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """`product(x, kernel)`, some rows and some features at a time.

    Args:
      product: (rows, inputs) and (inputs, features) to (rows, features).
      x: (…, inputs).
      kernel: (inputs, features).
    """
    inputs, features = kernel.shape
    taken = max(n for n in range(1, FEATURES + 1) if features % n == 0)
    rows = x.reshape(-1, inputs)
    blocks = jnp.pad(rows, ((0, -len(rows) % ROWS), (0, 0))).reshape(-1, ROWS, inputs)

    def of_features(start: jax.Array) -> jax.Array:
        part = fusion_barrier(jax.lax.dynamic_slice_in_dim(kernel, start, taken, axis=1))
        one = lambda block: fusion_barrier(product(fusion_barrier(block), part))
        return jax.lax.map(one, blocks).reshape(-1, taken)[: len(rows)]

    y = jax.lax.map(of_features, jnp.arange(0, features, taken))
    return y.swapaxes(0, 1).reshape(*x.shape[:-1], features)
