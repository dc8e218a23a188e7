import functools

import numpy as np
import pytest
from helpers.generation import small_model

from infinity_jax.errors import UserError
from infinity_jax.inference.best_of import BestImages
from infinity_jax.inference.pipeline import GeneratedImages, InfinityPipeline
from infinity_jax.weights.placement import place_model

PROMPTS = ['a red apple', 'a ghost']


@functools.cache
def pipeline():
    return InfinityPipeline(place_model(small_model()), max_batch=2)


def brightness(images, prompts):
    return [np.asarray(image).mean() for image in images]


def test_the_best_images_of_each_prompt_come_back_with_their_seeds():
    every = pipeline()(PROMPTS, num=5, seed=1)
    best = pipeline()(PROMPTS, num=5, seed=1, keep=2, score=brightness)
    values = every.pixels.reshape(2, 5, -1).mean(-1)
    order = np.argsort(-values, axis=1, kind='stable')[:, :2] + [[0], [5]]
    assert best.seeds == tuple((1, i) for i in order.ravel())
    assert (best.pixels == every.pixels[order.ravel()]).all()
    assert best.prompts == ('a red apple', 'a red apple', 'a ghost', 'a ghost')
    np.testing.assert_allclose(best.scores, values.ravel()[order.ravel()])
    assert every.scores == ()


def test_a_score_sees_every_image_with_its_prompt_and_keeps_all_by_default():
    seen = []

    def score(images, prompts):
        seen.extend(prompts)
        return np.arange(len(images))

    scored = pipeline()(PROMPTS, num=3, score=score)
    assert seen == ['a red apple'] * 3 + ['a ghost'] * 3
    assert scored.scores == (1.0, 0.0, 0.0, 1.0, 1.0, 0.0)  # batches of two
    assert scored.grid(columns=2).width < scored.grid(columns=3).width


def test_images_of_equal_score_stay_in_their_order():
    best = BestImages(['a'], 4, 2, lambda images, prompts: [1, 2, 2, 2])
    best.add(np.zeros((4, 2, 2, 3), np.uint8))
    assert best.result()[1] == [1, 2]


def test_a_sheet_shows_the_scores():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    plain = GeneratedImages(pixels, ('a', 'a'), ((0, 0), (0, 1)))
    scored = GeneratedImages(pixels, ('a', 'a'), ((0, 0), (0, 1)), (), (0.5, 0.25))
    assert np.any(np.asarray(plain.grid()) != np.asarray(scored.grid()))
    assert scored.grid(cell=10).width == 2 * (10 + 12) + 12  # no empty columns


@pytest.mark.parametrize('keep', [0, 4])
def test_more_than_there_are_cannot_be_kept(keep):
    with pytest.raises(UserError, match=f'keep is {keep}; wanted 1 to the 3 images of num'):
        pipeline()(PROMPTS, num=3, keep=keep, score=brightness)


def test_keeping_needs_a_score():
    with pytest.raises(UserError, match='keep is 1 without a score'):
        pipeline()(PROMPTS, num=3, keep=1)


@pytest.mark.parametrize(
    'scores, message',
    [
        ([1.0], r'float64 of shape \(1,\) for 2 images; wanted one number for each'),
        (['a', 'b'], 'wanted one number for each'),
        ([1.0, float('nan')], "returned NaN for an image of 'a ghost'"),
    ],
)
def test_a_score_is_one_number_per_image(scores, message):
    best = BestImages(PROMPTS, 1, None, lambda images, prompts: scores)
    with pytest.raises(UserError, match=message):
        best.add(np.zeros((2, 2, 2, 3), np.uint8))
