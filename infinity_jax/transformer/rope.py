"""Two-dimensional rotary position embedding on a scale-independent grid (paper 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.scales import ScaleSchedule

BASE = 10000.0


def rope_table(schedule: ScaleSchedule, head_dim: int) -> np.ndarray:
    """(2, L, H/2) float32 cosines and sines of all tokens' rotation angles.

    Of the H/2 pairs the first half turns with the row position, the second with the column
    position; pair j of either turns at frequency 10000^(−2j/(H/2)).
    """
    half = head_dim // 2
    exponent = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
    frequency = np.float32(1) / np.power(np.float32(BASE), exponent)
    positions = schedule.rope_positions().astype(np.float32)
    angles = positions[:, :, None] * frequency  # (L, 2, H/4)
    angles = angles.reshape(len(positions), half)
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def rotate(x_BLNH: jax.Array, table_2Lh: jax.Array) -> jax.Array:
    """Rotates the interleaved pairs (x[2i], x[2i+1]) of each head; float32."""
    cos, sin = (part[None, :, None, :] for part in table_2Lh)
    pairs = x_BLNH.reshape(*x_BLNH.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([cos * even - sin * odd, sin * even + cos * odd], axis=-1)
    return turned.reshape(x_BLNH.shape)
