"""Two-dimensional rotary position embedding on a scale-independent grid (paper 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.scales import ScaleSchedule

BASE = 10000.0


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
