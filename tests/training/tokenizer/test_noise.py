"""Scale dropout, flips and truncation: rates, what is kept, and what is refused."""

import jax
import numpy as np
import pytest

from infinity_jax.errors import UserError
from infinity_jax.training.tokenizer.noise import (
    QuantizerTraining,
    sample_flips,
    sample_kept,
    sample_truncation,
)

KEY = jax.random.key(0)
GRIDS = ((1, 1), (2, 2), (8, 8))


def test_defaults_sample_nothing():
    assert sample_kept(KEY, QuantizerTraining(), 4, 3) is None
    assert sample_flips(KEY, QuantizerTraining(), 4, GRIDS, 8) is None


@pytest.mark.parametrize(('first', 'last'), [(True, False), (False, True), (True, True)])
def test_scales_are_dropped_by_image_but_not_the_kept_ones(first, last):
    config = QuantizerTraining(scale_drop=0.25, keep_first=first, keep_last=last)
    share_K = np.asarray(sample_kept(KEY, config, 4000, 4)).mean(0)
    np.testing.assert_allclose(share_K[1:3], 0.75, atol=0.03)
    assert (share_K[0] == 1) == first and (share_K[-1] == 1) == last


def test_flips_have_their_rate_and_their_scales():
    flips = sample_flips(KEY, QuantizerTraining(flip_rate=0.2, flip_scales=2), 400, GRIDS, 16)
    assert flips[2] is None
    assert flips[1].shape == (400, 2, 2, 16)
    assert np.asarray(flips[1]).mean() == pytest.approx(0.2, abs=0.01)
    twice = sample_flips(KEY, QuantizerTraining(flip_rate=0.2, flip_scales=2), 4, GRIDS[:1] * 2, 16)
    assert not np.array_equal(*twice)


def test_truncation_leaves_at_least_one_scale_and_never_all():
    scales_B = np.asarray(sample_truncation(KEY, 1000, 4))
    assert set(scales_B) == {1, 2, 3}
    assert set(np.asarray(sample_truncation(KEY, 10, 1))) == {1}


@pytest.mark.parametrize(
    'fields',
    [{'scale_drop': 1.0}, {'flip_rate': -0.1}, {'scale_drop': 0.5, 'keep_last': False},
     {'flip_scales': 0}],
)  # fmt: skip
def test_impossible_settings(fields):
    with pytest.raises(UserError, match='quantizer'):
        QuantizerTraining(**fields)
