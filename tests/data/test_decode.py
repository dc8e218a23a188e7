import io
import struct
import zlib

import numpy as np
import pytest
from helpers.data_folders import encoded
from PIL import Image, ImageCms, features

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
    with pytest.raises(BrokenRecord, match='not an image, or damaged; read are JPEG, PNG'):
        upright_size(io.BytesIO(b'<html>'))
    with pytest.raises(BrokenRecord, match='-1 to 1; wanted 0 to 1, 255 or 65535'):
        decoded(saved(np.array([[-1, 1]], np.float32), 'TIFF'))
    with pytest.raises(BrokenRecord, match='nan'):
        decoded(saved(np.array([[np.nan, 1]], np.float32), 'TIFF'))


def saved(image, kind, **options):
    """Bytes of an image, or of an array as an image."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content):
    """The image in its own size."""
    return decode(io.BytesIO(content), upright_size(io.BytesIO(content)))


def png(width, height, depth, colour, row, before=b'', after=b''):
    """A PNG of equal rows, of chunk bytes that Pillow cannot write."""
    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b'IDAT', zlib.compress((b'\0' + row) * height))
    body = chunk(b'IHDR', header) + before + pixels + after + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + body


def chunk(kind, content):
    check = struct.pack('>I', zlib.crc32(kind + content))
    return struct.pack('>I', len(content)) + kind + content + check


@pytest.mark.parametrize(('dtype', 'kind', 'white'), [
    (np.uint16, 'PNG', 65535), (np.uint16, 'TIFF', 65535), (np.int32, 'TIFF', 65535),
    (np.int32, 'TIFF', 255), (np.float32, 'TIFF', 1), (np.float32, 'TIFF', 255),
    (np.float32, 'TIFF', 65535), (np.uint16, 'PPM', 65535),
])  # fmt: skip
def test_grey_of_more_than_8_bits_is_scaled(dtype, kind, white):
    ramp = np.linspace(0, white, 256).round(6 if white == 1 else 0).astype(dtype)
    grey = decoded(saved(np.tile(ramp, (8, 1)), kind))
    assert np.array_equal(grey[3, :, 0], np.arange(256)) and np.array_equal(
        grey[..., 0], grey[..., 2]
    )


def test_a_dark_16_bit_image_stays_dark():
    assert (decoded(saved(np.full((8, 8), 257 * 3, np.uint16), 'PNG')) == 3).all()


def test_transparent_palette_and_grey_images_are_white_where_nothing_is():
    palette = Image.new('P', (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (decoded(saved(palette, 'PNG')) == (10, 20, 30)).all()
    assert (decoded(saved(palette, 'PNG', transparency=1)) == 255).all()
    assert (decoded(saved(palette, 'GIF', transparency=1)) == 255).all()
    grey = Image.merge('LA', (Image.new('L', (8, 8), 100), Image.new('L', (8, 8), 51)))
    assert (decoded(saved(grey, 'PNG')) == 224).all()  # 255 + (100 - 255) / 5


def wide_profile():
    """A small RGB profile of the primaries of Display P3 and a gamma of 2.2."""
    number = lambda x: struct.pack('>i', round(x * 65536))
    xyz = lambda *v: b'XYZ \0\0\0\0' + b''.join(map(number, v))
    curve = b'curv\0\0\0\0' + struct.pack('>IHH', 1, round(2.2 * 256), 0)
    tags = {
        b'desc': b'desc\0\0\0\0' + struct.pack('>I', 5) + b'wide\0' + b'\0' * 79,
        b'wtpt': xyz(0.9642, 1, 0.8249),
        b'rXYZ': xyz(0.51512, 0.24120, -0.00105),
        b'gXYZ': xyz(0.29198, 0.69225, 0.04189),
        b'bXYZ': xyz(0.15710, 0.06657, 0.78407),
        b'rTRC': curve, b'gTRC': curve, b'bTRC': curve,
    }  # fmt: skip
    table, body, start = struct.pack('>I', len(tags)), b'', 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack('>II', start + len(body), len(content))
        body += content
    head = struct.pack('>I', start + len(body)) + b'none' + struct.pack('>I', 0x02100000)
    head += b'mntrRGB XYZ ' + bytes(12) + b'acsp' + bytes(28)
    return head + number(0.9642) + number(1) + number(0.8249) + bytes(48) + table + body


def test_colour_profiles_are_converted_to_srgb():
    red = Image.new('RGB', (16, 16), (234, 51, 35))  # of Display P3: the red of sRGB
    for kind in ('PNG', 'JPEG', 'WEBP', 'TIFF'):
        options = {'icc_profile': wide_profile(), 'quality': 100}
        shown = decoded(saved(red, kind, **options)).astype(int)
        assert np.abs(shown - (255, 0, 0)).max() < 8, kind
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    assert (decoded(saved(red, 'PNG', icc_profile=srgb)) == (234, 51, 35)).all()
    assert (decoded(saved(red, 'PNG', icc_profile=b'no profile')) == (234, 51, 35)).all()
    grey = saved(Image.new('L', (16, 16), 100), 'PNG', icc_profile=wide_profile())
    assert np.ptp(decoded(grey)) <= 1  # a profile of RGB, in a grey image
    profiles = (ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'))
    lab = ImageCms.profileToProfile(red, *profiles, outputMode='LAB')
    assert np.abs(decoded(saved(lab, 'TIFF')).astype(int) - (234, 51, 35)).max() < 4


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP', 'PNG', 'TIFF', 'AVIF'])
def test_the_orientation_of_every_format_is_used(kind):
    if kind == 'AVIF' and not features.check('avif'):
        pytest.skip('this Pillow reads no AVIF')
    image = Image.new('RGB', (64, 32), 'red')
    image.paste('blue', (32, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise: the left side becomes the top
    content = saved(image, kind, exif=exif, quality=95)
    shown = decoded(content)
    assert shown.shape == (64, 32, 3)
    assert shown[10, 16, 0] > 200 > 50 > shown[50, 16, 0]


def test_the_orientation_of_a_png_may_follow_its_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    turn = chunk(b'eXIf', exif.tobytes()[6:])
    row = b'\xff\0\0' * 8 + b'\0\0\xff' * 8
    for content in (png(16, 4, 8, 2, row, before=turn), png(16, 4, 8, 2, row, after=turn)):
        shown = decoded(content)
        assert shown.shape == (16, 4, 3) and shown[2, 2, 0] == 255 and shown[13, 2, 0] == 0
    assert decoded(png(16, 4, 8, 2, row)).shape == (4, 16, 3)


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG'])
def test_the_first_frame_of_an_animation_is_used(kind):
    first, *others = (Image.new('RGB', (16, 16), name) for name in ('red', 'blue', 'lime'))
    content = saved(first, kind, save_all=True, append_images=others, duration=100, quality=100)
    assert np.abs(decoded(content).astype(int) - (255, 0, 0)).max() < 4


def test_errors_of_every_kind_are_broken_records(monkeypatch):
    no_palette = png(8, 8, 8, 3, bytes(range(8)))
    assert upright_size(io.BytesIO(no_palette)) == (8, 8)
    with pytest.raises(BrokenRecord, match='AssertionError'):
        decode(io.BytesIO(no_palette), (8, 8))

    def fail(*_, **__):
        raise RuntimeError('Failed to decode image')

    monkeypatch.setattr(Image, 'open', fail)
    for read in (upright_size, lambda stream: decode(stream, (8, 8))):
        with pytest.raises(BrokenRecord, match='image cannot be read: Failed to decode'):
            read(io.BytesIO(no_palette))


def test_other_formats_are_never_opened(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, 'EpsImageFile', None)
    postscript = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n'
    for content in (postscript, saved(Image.new('RGB', (8, 8)), 'ICO')):
        with pytest.raises(BrokenRecord, match='not an image'):
            upright_size(io.BytesIO(content))


def test_a_large_image_is_not_decoded():
    content = encoded(40, 50, kind='PNG')
    assert decode(io.BytesIO(content), (8, 8), max_pixels=2000).shape == (8, 8, 3)
    with pytest.raises(BrokenRecord, match='50 x 40 = 2000 pixels, more than data.max_image_pix'):
        decode(io.BytesIO(content), (8, 8), max_pixels=1999)
