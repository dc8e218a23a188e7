"""Area and bilinear resizing as products with two small matrices, one per image axis.

Common resizers smooth when shrinking. The bilinear form must not, and the area form must use the
overlapping windows of adaptive average pooling. A wrong choice gives wrong bits without an error.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


@functools.lru_cache(maxsize=512)
def bilinear_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) float32 weights: half-pixel centres, edges clamped, no antialias."""
    # The coordinates are float32 as in the released implementation, whose rounding they share.
    scale = np.float32(source) / np.float32(target)
    centres = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    x = np.maximum(centres, np.float32(0))
    low = np.minimum(x.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    share = x - low.astype(np.float32)
    matrix = np.zeros((target, source), np.float32)
    rows = np.arange(target)
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, high), share)
    return matrix


@functools.lru_cache(maxsize=512)
def area_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) float32 weights: the mean over floor(i·n/m) to ceil((i+1)·n/m)."""
    matrix = np.zeros((target, source), np.float32)
    for i in range(target):
        start = i * source // target
        end = -((-(i + 1) * source) // target)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def _resize(
    x_Bhwc: jax.Array, grid: tuple[int, int], matrix: Callable[[int, int], np.ndarray]
) -> jax.Array:
    """Applies `matrix(source, target)` along rows and columns."""
    if x_Bhwc.shape[1:3] == tuple(grid):
        return x_Bhwc
    rows = matrix(x_Bhwc.shape[1], grid[0])
    columns = matrix(x_Bhwc.shape[2], grid[1])
    # Highest precision, because the signs of the result decide bits.
    x = jnp.einsum('yh,Bhwc->Bywc', rows, x_Bhwc, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum('xw,Bywc->Byxc', columns, x, precision=jax.lax.Precision.HIGHEST)


def bilinear(x_Bhwc: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Bilinear resize to `grid` = (h, w), growing or shrinking, without antialias."""
    return _resize(x_Bhwc, grid, bilinear_matrix)


def area(x_Bhwc: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Adaptive average pooling to `grid` = (h, w)."""
    return _resize(x_Bhwc, grid, area_matrix)
