import numpy as np
import pytest
from scipy import stats

from infinity_jax.tools.evaluation.report.intervals import (
    Estimate,
    accuracy,
    average,
    mean,
    wilson,
)


@pytest.mark.parametrize('right, count', [(0, 80), (31, 80), (80, 80), (1, 2)])
def test_wilson_is_scipy_s(right, count):
    expected = stats.binomtest(right, count).proportion_ci(method='wilson')
    value, low, high = wilson(right / count, count)
    assert value == right / count
    np.testing.assert_allclose((low, high), (expected.low, expected.high), atol=1e-6)


def test_images_of_a_prompt_that_agree_are_worth_one():
    agree = [[True] * 4] * 30 + [[False] * 4] * 50
    np.testing.assert_allclose(accuracy(agree)[1:], wilson(30 / 80, 80)[1:], rtol=0.02)


def test_images_of_a_prompt_that_do_not_agree_are_worth_their_number():
    apart = [[True, False, True, False]] * 80
    np.testing.assert_allclose(accuracy(apart)[1:], wilson(0.5, 320)[1:])


def test_the_interval_of_an_accuracy_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        chances = random.beta(2, 2, 90)  # prompts differ in difficulty; their mean is one half
        _, low, high = accuracy(random.random((90, 4)) < chances[:, None])
        inside += low <= 0.5 <= high
    assert 0.92 <= inside / 300 <= 0.985


def test_means_and_their_average():
    values = [1.0, 2.0, 4.0, 5.0]
    value, low, high = mean(values)
    spread = 1.959964 * np.std(values, ddof=1) / 2
    np.testing.assert_allclose((value, low, high), (3, 3 - spread, 3 + spread))
    assert mean([2.0]) == Estimate(2.0)
    both = average([Estimate(0.5, 0.4, 0.7), Estimate(1.0, 0.7, 1.0)])
    np.testing.assert_allclose(both, (0.75, 0.75 - np.hypot(0.1, 0.3) / 2, 0.75 + 0.1))
    assert average([Estimate(1.0), Estimate(2.0, 1.0, 3.0)]) == Estimate(1.5)


def test_a_share_lies_within_its_interval():
    for count in range(1, 300):
        for share in (0.0, 1 / count, 1.0):
            estimate = wilson(share, count)
            assert 0 <= estimate.low <= share <= estimate.high <= 1
