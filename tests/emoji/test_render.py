import numpy as np
import pytest

from infinity_jax.config import UserError
from infinity_jax.emoji import artwork as emoji
from infinity_jax.emoji import captions
from infinity_jax.emoji.captions import BACKGROUNDS, PictureSpec
from infinity_jax.emoji.matcher import PLACEMENTS
from infinity_jax.emoji.render import margin, placement, render


@pytest.mark.parametrize('picture_size', [48, 64, 128])
def test_picture_has_its_background_and_its_emoji(picture_size):
    for size, place in PLACEMENTS:
        pixels = render(PictureSpec('red square', 'light blue', size, place), picture_size)
        assert pixels.shape == (picture_size, picture_size, 3) and pixels.dtype == np.uint8
        top, left, edge = placement(size, place, picture_size)
        middle = pixels[top + edge // 2, left + edge // 2]
        assert middle[0] > 180 and middle[2] < 100
        outside = np.ones(pixels.shape[:2], bool)
        outside[top : top + edge, left : left + edge] = False
        assert (pixels[outside] == BACKGROUNDS['light blue']).all()


def test_sizes_are_the_stated_pixels():
    assert [placement(s, 'centre', 64)[2] for s in captions.SIZES] == [56, 44, 32]


@pytest.mark.parametrize('picture_size', [16, 48, 64, 72, 128, 256])
def test_no_emoji_touches_the_margin(picture_size):
    for size, place in PLACEMENTS:
        top, left, edge = placement(size, place, picture_size)
        low, high = margin(picture_size), picture_size - margin(picture_size)
        assert low <= min(top, left) and max(top, left) + edge <= high


def test_compositing_equals_the_float_formula():
    pixels = render(PictureSpec('ghost', 'orange'), 64)[4:60, 4:60]
    rgba = emoji.sprite('ghost', 56).astype(np.float64)
    wanted = rgba[..., :3] + np.array(BACKGROUNDS['orange']) * (1 - rgba[..., 3:] / 255)
    assert np.abs(pixels - wanted).max() <= 0.5 + 1e-9


@pytest.mark.parametrize('picture_size', [0, 8, 60, -64])
def test_bad_picture_size_is_a_user_error(picture_size):
    with pytest.raises(UserError, match=f'picture_size {picture_size} '):
        render(PictureSpec('ghost', 'orange'), picture_size)
