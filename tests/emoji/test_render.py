import numpy as np
import pytest

from infinity_jax.emoji import artwork, image_spec
from infinity_jax.emoji.image_spec import BACKGROUNDS, ImageSpec
from infinity_jax.emoji.matcher import PLACEMENTS
from infinity_jax.emoji.render import margin, placement, render
from infinity_jax.errors import UserError


@pytest.mark.parametrize('image_size', [48, 64, 128])
def test_image_has_its_background_and_its_emoji(image_size):
    for size, place in PLACEMENTS:
        pixels = render(ImageSpec('red square', 'light blue', size, place), image_size)
        assert pixels.shape == (image_size, image_size, 3) and pixels.dtype == np.uint8
        top, left, edge = placement(size, place, image_size)
        middle = pixels[top + edge // 2, left + edge // 2]
        assert middle[0] > 180 and middle[2] < 100
        outside = np.ones(pixels.shape[:2], bool)
        outside[top : top + edge, left : left + edge] = False
        assert (pixels[outside] == BACKGROUNDS['light blue']).all()


def test_sizes_are_the_stated_pixels():
    assert [placement(s, 'centre', 64)[2] for s in image_spec.SIZES] == [56, 44, 32]


@pytest.mark.parametrize('image_size', [16, 48, 64, 72, 128, 256])
def test_no_emoji_touches_the_margin(image_size):
    for size, place in PLACEMENTS:
        top, left, edge = placement(size, place, image_size)
        low, high = margin(image_size), image_size - margin(image_size)
        assert low <= min(top, left) and max(top, left) + edge <= high


def test_compositing_equals_the_float_formula():
    pixels = render(ImageSpec('ghost', 'orange'), 64)[4:60, 4:60]
    rgba = artwork.sprite('ghost', 56).astype(np.float64)
    wanted = rgba[..., :3] + np.array(BACKGROUNDS['orange']) * (1 - rgba[..., 3:] / 255)
    assert np.abs(pixels - wanted).max() <= 0.5 + 1e-9


@pytest.mark.parametrize('image_size', [0, 8, 60, -64])
def test_bad_image_size_is_a_user_error(image_size):
    with pytest.raises(UserError, match=f'image_size {image_size} '):
        render(ImageSpec('ghost', 'orange'), image_size)
