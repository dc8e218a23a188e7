"""Metrics of reconstructions: SSIM, edge energy and the Fréchet distance of features (FID)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

WINDOW = 11  # positions of the Gaussian window, and its width, as published (Wang et al. 2004)
SIGMA = 1.5
RANGE = 2.0  # of pixels in [-1, 1]


@functools.lru_cache(maxsize=32)
def _window_matrix(size: int) -> np.ndarray:
    """(size − 10, size): the weighted mean over each window inside the image."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * np.square(offsets / SIGMA))
    matrix = np.zeros((size - WINDOW + 1, size), np.float32)
    for i in range(len(matrix)):
        matrix[i, i : i + WINDOW] = weights / weights.sum()
    return matrix


def ssim(pixels_BYX3: jax.Array, target_BYX3: jax.Array) -> jax.Array:
    """(B,) structural similarity, 1 for equal images: mean over windows and channels.

    Args:
      pixels_BYX3, target_BYX3: in [-1, 1], edges of 11 pixels or more; the first is clamped.
    """
    if min(target_BYX3.shape[1:3]) < WINDOW:
        raise ValueError(f'images of {target_BYX3.shape[1:3]}; wanted edges of {WINDOW} pixels')
    rows, columns = (_window_matrix(n) for n in target_BYX3.shape[1:3])

    def mean(x):
        x = jnp.einsum('yh,bhwc->bywc', rows, x, precision=jax.lax.Precision.HIGHEST)
        return jnp.einsum('xw,bywc->byxc', columns, x, precision=jax.lax.Precision.HIGHEST)

    x, y = jnp.clip(pixels_BYX3, -1.0, 1.0), target_BYX3
    mean_x, mean_y = mean(x), mean(y)
    variance_x = mean(jnp.square(x)) - jnp.square(mean_x)
    variance_y = mean(jnp.square(y)) - jnp.square(mean_y)
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (jnp.square(mean_x) + jnp.square(mean_y) + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def edge_energy(pixels_BYX3: jax.Array) -> jax.Array:
    """(B,) mean squared difference of neighbouring pixels, down plus across; blur lowers it.

    Args:
      pixels_BYX3: in [-1, 1]; clamped.
    """
    pixels = jnp.clip(pixels_BYX3, -1.0, 1.0)
    down, across = (jnp.mean(jnp.square(jnp.diff(pixels, axis=i)), axis=(1, 2, 3)) for i in (1, 2))
    return down + across


def frechet_distance(features_ND: np.ndarray, others_ND: np.ndarray) -> float:
    """|μ₁ − μ₂|² + tr(C₁ + C₂ − 2·√(C₁C₂)) of two sets of features, in float64; FID if Inception's.

    Args:
      features_ND, others_ND: 2 or more rows each; covariances divide by N − 1.
    """
    means, factors, traces = [], [], []
    for features in (features_ND, others_ND):
        features = np.asarray(features, np.float64)
        means.append(features.mean(0))
        factor = (features - means[-1]) / np.sqrt(len(features) - 1)  # C = factorᵀ · factor
        traces.append(np.square(factor).sum())
        if len(factor) > factor.shape[1]:  # a smaller factor, with as many rows as C
            values, vectors = np.linalg.eigh(factor.T @ factor)
            factor = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        factors.append(factor)
    # tr √(C₁C₂) is the sum of the singular values of factor₁ · factor₂ᵀ: no root of an
    # unsymmetric matrix, and for few images a small one.
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    return float(np.square(means[0] - means[1]).sum() + sum(traces) - 2 * cross)
