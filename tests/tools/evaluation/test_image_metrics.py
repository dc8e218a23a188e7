"""SSIM against scikit-image's numbers, and the Fréchet distance against scipy's matrix root."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from infinity_jax.tools.evaluation.image_metrics import edge_energy, frechet_distance, ssim


def test_ssim_equals_scikit_image():
    rng = np.random.RandomState(0)
    target = np.clip(np.cumsum(rng.randn(2, 24, 20, 3) * 0.15, axis=1), -1, 1).astype(np.float32)
    noise = rng.randn(*target.shape) * 0.1
    pixels = np.clip(target + noise, -1, 1).astype(np.float32)
    # structural_similarity(…, data_range=2, channel_axis=-1, gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False) of scikit-image 0.26.0 in float64.
    wanted = [0.9421222551800424, 0.9196645784571231]
    np.testing.assert_allclose(ssim(jnp.asarray(target), jnp.asarray(pixels)), wanted, atol=1e-5)
    np.testing.assert_allclose(ssim(jnp.asarray(target), jnp.asarray(target)), 1, atol=1e-5)
    with pytest.raises(ValueError, match='wanted edges of 11'):
        ssim(jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 8, 3)))


def test_edge_energy_by_hand():
    steps = np.zeros((2, 2, 3, 3), np.float32)
    steps[0, :, 2] = 0.5  # one of two neighbours across differs, by 0.5, none down
    steps[1, 1] = 3.0  # all three down, by 1 as it is clamped
    np.testing.assert_allclose(edge_energy(jnp.asarray(steps)), [0.125, 1.0])


def test_frechet_distance_equals_the_formula_with_a_matrix_root():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((50, 6)) @ rng.standard_normal((6, 6))
    b = rng.standard_normal((40, 6)) @ rng.standard_normal((6, 6)) + 0.5
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-10)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_with_fewer_images_than_features():
    features = np.random.default_rng(1).standard_normal((4, 10))
    assert np.isfinite(frechet_distance(features, features + 1))
    assert frechet_distance(features, features + 1) == pytest.approx(10, abs=1e-6)
