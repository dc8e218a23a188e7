"""Spikes are told from noise, from a falling loss, and from what is no number."""

import numpy as np
import pytest

from infinity_jax.training.metrics import JUDGED_FROM, SpikeDetector


def spikes(losses):
    level = SpikeDetector()
    return {i: below for i, loss in enumerate(losses) if (below := level.update(loss)) is not None}


def noisy(count, seed=0):
    return 0.5 + 0.01 * np.random.default_rng(seed).standard_normal(count)


def test_noise_and_a_falling_loss_are_none():
    assert spikes(noisy(2000)) == {}
    assert spikes(noisy(500) + np.exp(-np.arange(500) / 50)) == {}
    assert spikes([0.5] * 50 + [0.505] * 50) == {}  # however steady it was before


@pytest.mark.parametrize('height', [0.65, 3.0, 1e30])
def test_a_spike_is_told_with_the_level_below_it(height):
    losses = noisy(300)
    losses[[150, 151, 200]] = height
    found = spikes(losses)
    assert sorted(found) == [150, 151, 200]  # the first hides neither the second nor the third
    np.testing.assert_allclose(list(found.values()), 0.5, atol=0.01)


def test_a_loss_that_stays_up_becomes_the_level():
    found = spikes(np.concatenate([noisy(100), 1 + noisy(200)]))
    assert 100 in found and max(found) < 160


def test_the_first_losses_and_what_is_not_finite_are_not_judged():
    assert spikes([0.5] * (JUDGED_FROM - 1) + [5.0]) == {}
    assert spikes([0.5] * JUDGED_FROM + [np.nan, np.inf, 5.0]) == {JUDGED_FROM + 2: 0.5}
