import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from infinity_jax.errors import UserError
from infinity_jax.inference import edit_masks
from infinity_jax.inference.edit_masks import (
    composite,
    extend,
    feathered,
    kept_codes,
    kept_scales,
)
from infinity_jax.inference.source_images import read_image, read_mask


def test_codes_that_the_mask_touches_are_generated():
    mask = np.zeros((16, 8), np.float32)
    mask[3, 2] = 0.01  # one faint pixel
    kept = kept_codes(mask, ((1, 1), (2, 2), (4, 4), (16, 8)))
    assert [int((~each).sum()) for each in kept] == [1, 1, 1, 1]
    assert not kept[1][0, 0] and not kept[2][0, 1] and not kept[3][3, 2]
    assert all(each.all() for each in kept_codes(np.zeros((5, 7), np.float32), ((1, 1), (3, 2))))


def test_strength_counts_the_first_scales():
    assert [kept_scales(s, 4) for s in (0, 0.25, 0.5, 0.75, 1)] == [4, 3, 2, 1, 0]
    assert [kept_scales(s, 13) for s in (0, 0.04, 0.5, 1)] == [13, 12, 7, 0]
    with pytest.raises(UserError, match='strength is -0.1; wanted 0'):
        kept_scales(-0.1, 4)


def test_the_feather_is_inside_the_mask():
    mask = np.zeros((9, 64), np.float32)
    mask[:, 20:50] = 1
    share = feathered(mask, 3)
    assert (share[mask == 0] == 0).all()
    assert share[4, 20:25].tolist() == [0.25, 0.5, 0.75, 1, 1]
    assert (share[0] == share[8]).all()  # the image's border is no edge of the mask
    assert (feathered(mask, 0) == mask).all()
    assert (feathered(np.ones((4, 4), np.float32), 3) == 1).all()
    narrow = np.zeros((9, 9), np.float32)
    narrow[4] = 1
    assert (feathered(narrow, 5)[4] == 1).all()
    assert feathered(np.pad(np.ones((50, 64)), ((7, 7), (0, 0)))).max() == 1


@pytest.mark.parametrize('feather', [1, 3, 40])
def test_strips_have_no_seams(monkeypatch, feather):
    rng = np.random.default_rng(feather)
    mask = (ndimage.gaussian_filter(rng.standard_normal((50, 31)), 4) > 0).astype(np.float32)
    mask[10:30] = 1  # strips without any pixel outside
    source, generated = rng.integers(0, 256, (2, 50, 31, 3), np.uint8)
    depth = ndimage.distance_transform_edt(mask > 0)
    wanted = np.minimum(depth / min(feather + 1, max(depth.max(), 1)), 1)
    for strip in (1, 7, 50, 1000):
        monkeypatch.setattr(edit_masks, 'STRIP', strip)
        share = feathered(mask, feather)
        np.testing.assert_allclose(share, wanted, atol=1e-6)
        mixed = source * (1 - share[..., None]) + generated * share[..., None]
        assert (composite(source, generated, share) == np.rint(mixed)).all()


def test_a_photograph_takes_little_memory():
    source = np.zeros((2000, 2000, 3), np.uint8)
    mask = np.zeros((2000, 2000), np.float32)
    mask[100:1900, 100:1900] = 1
    tracemalloc.start()
    composite(source, source, feathered(mask))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * mask.size  # bytes; 34 if computed in one piece


def test_a_composite_mixes_by_share():
    source, generated = np.full((1, 3, 3), 10, np.uint8), np.full((1, 3, 3), 200, np.uint8)
    mixed = composite(source, generated, np.array([[0, 0.5, 1]], np.float32))
    assert mixed[0, :, 0].tolist() == [10, 105, 200] and mixed.dtype == np.uint8


def test_a_larger_canvas():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    canvas, mask = extend(image, (4, 6))
    assert canvas.shape == (4, 6, 3) and (canvas[1:3, 2:4] == image).all()
    assert (canvas[0, :2] == image[0, 0]).all() and (canvas[3, 4:] == image[1, 1]).all()
    assert mask.sum() == 20 and not mask[1:3, 2:4].any()
    canvas, mask = extend(image, (2, 3), at=(0, 1))
    assert mask.tolist() == [[1, 0, 0]] * 2
    for size, at in (((1, 6), None), ((4, 6), (3, 0)), ((4, 6), (0, -1))):
        with pytest.raises(UserError, match='an image of 2 x 2 pixels does not fit a canvas'):
            extend(image, size, at)


def encoded(image, kind='PNG', **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_images_are_upright_opaque_and_of_their_own_size(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.rot90(pixels, -1)
    (tmp_path / 'x.png').write_bytes(encoded(image, exif=exif))
    assert (read_image(encoded(image)) == pixels).all()
    assert (read_image(image) == pixels).all()
    assert (read_image(tmp_path / 'x.png') == turned).all()
    assert (read_image(str(tmp_path / 'x.png')) == turned).all()
    assert (read_image(Image.open(tmp_path / 'x.png')) == turned).all()
    clear = image.convert('RGBA')
    clear.putalpha(0)
    assert (read_image(clear) == 255).all() and (read_image(encoded(clear)) == 255).all()
    for mode in ('1', 'L', 'LA', 'P', 'CMYK', 'YCbCr', 'I;16', 'F'):
        other = Image.fromarray(pixels[..., 0]).convert('F') if mode == 'F' else image.convert(mode)
        assert read_image(other).shape == (5, 3, 3), mode


def test_masks_are_white_or_transparent():
    wanted = np.array([[0, 1, 1], [0, 0, 1]], np.float32)
    size = wanted.shape
    white = Image.fromarray((wanted * 255).astype(np.uint8))
    erased = Image.new('RGBA', size[::-1], 'white')
    erased.putalpha(Image.fromarray(((1 - wanted) * 255).astype(np.uint8)))
    opaque_white = Image.merge('RGBA', (white, white, white, Image.new('L', size[::-1], 255)))
    for mask in (white, erased, opaque_white, encoded(white), encoded(erased), wanted > 0, wanted,
                 (wanted * 255).astype(np.uint8), white.convert('1')):  # fmt: skip
        assert (read_mask(mask, size) == wanted).all()


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (np.zeros((2, 3), bool), 'marks no pixel'),
        (np.ones((3, 2), bool), 'mask has 2 x 3 pixels, the image 3 x 2; wanted the same size'),
        (np.full((2, 3), np.nan), 'values outside of 0 to 1'),
        (np.full((2, 3), 1.5), 'values outside of 0 to 1'),
        (b'no image', 'not an image'),
        ('/nowhere.png', '/nowhere.png: No such file'),
    ],
)
def test_what_is_no_mask(mask, message):
    with pytest.raises(UserError, match=message):
        read_mask(mask, (2, 3))


def test_what_is_no_image():
    whole = encoded(Image.new('RGB', (30, 30)), 'JPEG')
    for source in (b'', b'x' * 100, whole[:200]):
        with pytest.raises(UserError, match='image: .*; wanted an image'):
            read_image(source)
    with pytest.raises(UserError, match='more than data.max_image_pixels 10'):
        read_image(whole, max_pixels=10)
