import io

import numpy as np
import pytest
from helpers.data_folders import encoded
from PIL import Image

from infinity_jax.data.decode import decode, upright_size
from infinity_jax.data.records import BrokenRecord


def plain(content, size):
    """Resize to cover, then cut, in so many words."""
    image, (to_h, to_w) = Image.open(io.BytesIO(content)).convert('RGB'), size
    w, h = image.size
    scale = max(to_w / w, to_h / h)
    resized = image.resize((round(w * scale), round(h * scale)), Image.Resampling.LANCZOS)
    y, x = (resized.height - to_h) // 2, (resized.width - to_w) // 2
    return np.array(resized)[y : y + to_h, x : x + to_w]


@pytest.mark.parametrize('shape', [(64, 64), (64, 128), (200, 90), (48, 32), (33, 97)])
@pytest.mark.parametrize('size', [(32, 32), (48, 32), (32, 80), (96, 96)])
def test_resized_to_cover_and_cut_at_the_centre(shape, size):
    content = encoded(*shape, kind='PNG')
    got = decode(io.BytesIO(content), size)
    assert got.shape == (*size, 3) and got.dtype == np.uint8
    # Whole pixels of the resized image: rounding may move the two by a part of a pixel.
    error = np.abs(got.astype(int) - plain(content, size)).mean()
    assert error < (0.1 if shape[0] == shape[1] else 4)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    content = encoded(1024, 1024, quality=95)
    error = np.abs(decode(io.BytesIO(content), (64, 64)).astype(int) - plain(content, (64, 64)))
    assert error.mean() < 1


def test_a_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    turned = encoded(64, 128, quality=95, exif=exif)
    assert upright_size(io.BytesIO(turned)) == (128, 64)
    upright = Image.open(io.BytesIO(turned)).transpose(Image.Transpose.ROTATE_270)
    buffer = io.BytesIO()
    upright.save(buffer, 'PNG')
    wanted = decode(io.BytesIO(buffer.getvalue()), (64, 32))
    assert np.abs(decode(io.BytesIO(turned), (64, 32)).astype(int) - wanted).mean() < 1


def test_an_orientation_that_is_a_text_is_left_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(64, 128, exif=exif)
    entry, as_text = (bytes.fromhex(f'0112 000{kind}') for kind in (3, 2))
    assert turned.count(entry) == 1
    content = turned.replace(entry, as_text)
    assert upright_size(io.BytesIO(content)) == (64, 128)
    assert decode(io.BytesIO(content), (32, 64)).shape == (32, 64, 3)


def test_grey_palette_and_transparent_images():
    buffer = io.BytesIO()
    Image.new('RGBA', (32, 32), (255, 0, 0, 0)).save(buffer, 'PNG')
    assert (decode(io.BytesIO(buffer.getvalue()), (16, 16)) == 255).all()
    for mode in ('L', 'P', '1', 'CMYK'):
        buffer = io.BytesIO()
        Image.new(mode, (32, 32)).save(buffer, 'TIFF')
        assert decode(io.BytesIO(buffer.getvalue()), (16, 16)).shape == (16, 16, 3)


def test_broken_images():
    whole = encoded(64, 64, quality=95)
    assert upright_size(io.BytesIO(whole[:-900])) == (64, 64)  # the header is whole
    with pytest.raises(BrokenRecord, match='truncated'):
        decode(io.BytesIO(whole[:-900]), (32, 32))
    with pytest.raises(BrokenRecord, match='cannot'):
        decode(io.BytesIO(encoded(64, 64, kind='PNG')[:200]), (32, 32))
    with pytest.raises(BrokenRecord, match='cannot identify'):
        upright_size(io.BytesIO(b'<html>'))
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(buffer, 'PNG')
    with pytest.raises(BrokenRecord, match='I;16'):
        decode(io.BytesIO(buffer.getvalue()), (8, 8))
