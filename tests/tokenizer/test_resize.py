import math

import jax
import numpy as np
import pytest

from infinity_jax.scales import RATIOS
from infinity_jax.tokenizer import resize

pytestmark = pytest.mark.numeric

SHAPES = [(6, 4), (3, 2), (5, 7), (1, 1), (13, 9), (6, 9), (12, 12)]


def image(h, w, seed=0):
    return np.random.default_rng(seed).standard_normal((2, h, w, 3)).astype(np.float32)


def weights_at(position, size):
    """The two neighbours of a half-pixel coordinate and their shares, edges clamped."""
    position = min(max(position, 0.0), size - 1.0)
    low = math.floor(position)
    return [(low, 1 - (position - low)), (min(low + 1, size - 1), position - low)]


def slow_bilinear(x, grid):
    out = np.zeros((x.shape[0], *grid, x.shape[3]))
    for i in range(grid[0]):
        for j in range(grid[1]):
            for row, a in weights_at((i + 0.5) * x.shape[1] / grid[0] - 0.5, x.shape[1]):
                for column, b in weights_at((j + 0.5) * x.shape[2] / grid[1] - 0.5, x.shape[2]):
                    out[:, i, j] += a * b * x[:, row, column]
    return out


def window(i, source, target):
    return slice(math.floor(i * source / target), math.ceil((i + 1) * source / target))


def slow_area(x, grid):
    out = np.zeros((x.shape[0], *grid, x.shape[3]))
    for i in range(grid[0]):
        for j in range(grid[1]):
            rows, columns = window(i, x.shape[1], grid[0]), window(j, x.shape[2], grid[1])
            out[:, i, j] = x[:, rows, columns].astype(np.float64).mean((1, 2))
    return out


@pytest.mark.parametrize('grid', SHAPES)
@pytest.mark.parametrize('source', [(6, 4), (5, 7), (1, 1), (12, 12)])
def test_both_resizes_equal_explicit_loops(source, grid):
    x = image(*source)
    np.testing.assert_allclose(resize.bilinear(x, grid), slow_bilinear(x, grid), atol=5e-6)
    np.testing.assert_allclose(resize.area(x, grid), slow_area(x, grid), atol=2e-6)


def test_bilinear_does_not_antialias():
    x = image(16, 16)
    small = resize.bilinear(x, (5, 5))
    shape = (2, 5, 5, 3)
    plain = jax.image.resize(x, shape, 'linear', antialias=False)
    smoothed = jax.image.resize(x, shape, 'linear', antialias=True)
    np.testing.assert_allclose(small, plain, atol=1e-5)
    assert np.abs(small - smoothed).max() > 0.5


def test_area_windows_overlap_where_sizes_do_not_divide():
    matrix = resize.area_matrix(5, 3)
    third = 1 / 3
    wanted = [[0.5, 0.5, 0, 0, 0], [0, third, third, third, 0], [0, 0, 0, 0.5, 0.5]]
    np.testing.assert_allclose(matrix, wanted, rtol=1e-6)


def test_area_differs_from_bilinear():
    x = image(12, 12)
    assert np.abs(resize.area(x, (5, 5)) - resize.bilinear(x, (5, 5))).max() > 0.3


@pytest.mark.parametrize('matrix', [resize.bilinear_matrix, resize.area_matrix])
def test_every_row_of_weights_sums_to_one(matrix):
    edges = {(h, full[-1][0]) for full in RATIOS.values() for h, _ in full}
    for small, large in sorted(edges):
        for weights in (matrix(large, small), matrix(small, large)):
            assert (weights >= 0).all()
            np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)


def test_same_size_is_untouched():
    x = image(5, 7)
    assert (resize.area(x, (5, 7)) == x).all() and (resize.bilinear(x, (5, 7)) == x).all()
