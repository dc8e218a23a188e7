"""Two-dimensional rotary position embedding on a scale-independent grid (paper 3.3).

`normalize_and_rotate` applies it to queries and keys together with their L2 normalisation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import target_platform

BASE = 10000.0
NORM_EPSILON = 1e-12
NO_LENGTH = 1e-6  # a query or key this short is rounding: without direction, so without gradient
ROTATED = 'rotated'  # checkpoint name of rotated queries and keys, for `remat.POLICIES`


def rope_table(schedule: ScaleSchedule, head_dim: int) -> np.ndarray:
    """(2, L, H/2) float32 cosines and sines of all tokens' rotation angles.

    The first half of the H/2 pairs rotates with the row position, the second half with the column
    position. Pair j of either half rotates at frequency 10000^(−2j/(H/2)).
    """
    half = head_dim // 2
    exponent = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
    frequency = np.float32(1) / np.power(np.float32(BASE), exponent)
    positions = schedule.rope_positions().astype(np.float32)
    angles = positions[:, :, None] * frequency  # (L, 2, H/4)
    angles = angles.reshape(len(positions), half)
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def rotate(x: jax.Array, table_2Lh: np.ndarray, heads_axis: int = 2) -> jax.Array:
    """Rotates the interleaved pairs (x[2i], x[2i+1]) of each head; float32.

    x is (B, L, N, H), or with `heads_axis` 1 (B, N, L, H).
    """
    cos, sin = np.expand_dims(table_2Lh, (1, heads_axis + 1))
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([cos * even - sin * odd, sin * even + cos * odd], axis=-1)
    return rotated.reshape(x.shape)


def swap_pairs(x: jax.Array) -> jax.Array:
    """(x[1], x[0], x[3], x[2], …) of each head, exactly: a product with ones and zeros.

    Matrix units move numbers between the lanes of a register at almost no cost. Stacking and
    slicing, as `rotate` does, took a TPU longer than the projection to q, k and v.
    """
    swap = np.eye(x.shape[-1])[np.arange(x.shape[-1]) ^ 1]
    return jnp.matmul(x, jnp.asarray(swap, x.dtype), precision=jax.lax.Precision.HIGHEST)


def rotate_swapped(
    x: jax.Array, swapped: jax.Array, table_2Lh: np.ndarray, heads_axis: int = 2
) -> jax.Array:
    """`rotate(x)`, given `swap_pairs(x)`: no number changes its lane."""
    cos, sin = np.expand_dims(np.repeat(table_2Lh, 2, axis=-1), (1, heads_axis + 1))
    sin = np.where(np.arange(sin.shape[-1]) % 2, sin, -sin)
    return x * cos + swapped * sin


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
