"""Decodes, resizes and crops images."""

import contextlib
import math
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from infinity_jax.data.colours import opaque, to_srgb
from infinity_jax.data.records import BrokenRecord

DRAFT_MARGIN = 2  # a JPEG is decoded at a fraction of its size, at least twice the target
MAX_PIXELS = 178_956_970  # of an image, before it is resized; Pillow's own limit
# A file is opened if its content has one of these formats; its name does not count. No others:
# Pillow would hand PostScript to an interpreter.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'JPEG2000', 'PPM')
ENDINGS = (
    '.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.avif',
    '.jp2', '.j2k', '.jpf', '.jpx', '.ppm', '.pgm', '.pnm',
)  # fmt: skip
# Transposition that shows the image upright, by EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Not JPEG: the further images of a photograph in MPO format are views or depths, and no frames.
_ANIMATED = ('GIF', 'PNG', 'WEBP', 'AVIF')
_PNG_END = 1 << 16  # bytes at the end of a PNG that are searched for EXIF


class Crop(NamedTuple):
    """A crop of an image: its edge relative to the largest crop, x and y to the remaining room."""

    edge: float  # above 0, up to 1
    x: float  # 0 to 1, as stored: before a photo is turned upright
    y: float


@contextlib.contextmanager
def _opened(stream: BinaryIO, max_pixels: int) -> Iterator[tuple[Image.Image, int]]:
    """The image, of which only the header is read, and its EXIF orientation.

    Raises:
      BrokenRecord: reading the header, or the image inside the context, fails.
    """
    if Image.MAX_IMAGE_PIXELS is not None:  # `max_pixels` decides, below or above it
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        with stream, Image.open(stream, formats=_formats()) as image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise BrokenRecord(
                    f'image of {image.width} x {image.height} = {pixels} pixels, more than '
                    f'data.max_image_pixels {max_pixels}'
                )
            yield image, _orientation(image, stream)
    except BrokenRecord:
        raise
    except UnidentifiedImageError:
        raise BrokenRecord(f'not an image, or damaged; read are {", ".join(FORMATS)}') from None
    except Exception as error:  # damaged images raise any kind, such as AssertionError
        reason = str(error) or type(error).__name__
        raise BrokenRecord(f'image cannot be read: {reason}') from None


def _formats() -> list[str]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _orientation(image: Image.Image, stream: BinaryIO) -> int:
    """The orientation, 1 to 8, in which the image must be turned after it was decoded."""
    if image.format == 'TIFF':  # Pillow turns it
        return 1
    if image.format == 'PNG' and 'exif' not in image.info:
        # Pillow would decode all pixels to look for EXIF after them.
        stated = _trailing_orientation(stream)
    else:
        stated = image.getexif().get(0x0112)
    return stated if stated in _UPRIGHT else 1  # it may be text


def _trailing_orientation(stream: BinaryIO) -> int | None:
    """The orientation in the EXIF chunk of a PNG, which may follow the pixels.

    Only the end of the file is read: to walk over all chunks of pixels would read most of a file.
    """
    before = stream.tell()
    stream.seek(max(stream.seek(0, os.SEEK_END) - _PNG_END, 0))
    end = stream.read(_PNG_END)
    stream.seek(before)
    start = end.rfind(b'eXIf')
    length = int.from_bytes(end[max(start - 4, 0) : max(start, 0)])
    chunk, check = end[start : start + 4 + length], end[start + 4 + length :][:4]
    if start < 4 or zlib.crc32(chunk).to_bytes(4) != check:
        return None
    exif = Image.Exif()
    exif.load(b'Exif\0\0' + chunk[4:])
    return exif.get(0x0112)


class Header(NamedTuple):
    """Facts about an image that stand before its pixels.

    Attributes:
      size: (height, width) as a viewer shows it.
      animated: whether more frames follow the first, which alone is used.
    """

    size: tuple[int, int]
    animated: bool


def read_header(stream: BinaryIO, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads the header of an image, and none of its pixels.

    Raises:
      BrokenRecord: it is not an image, or has more pixels than `max_pixels`.
    """
    with _opened(stream, max_pixels) as (image, orientation):
        size = image.size if orientation > 4 else image.size[::-1]
        animated = False
        if image.format in _ANIMATED:
            with contextlib.suppress(Exception):  # a damaged second frame is never used
                animated = getattr(image, 'is_animated', False)
        return Header(size, animated)


def upright_size(stream: BinaryIO, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of an image as a viewer shows it, see `read_header`."""
    return read_header(stream, max_pixels).size


def decode(
    stream: BinaryIO,
    size: tuple[int, int],
    crop: Crop | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes an image, resizes it (Lanczos) so that it covers `size`, and crops it to `size`.

    The result is in sRGB. Transparent images are composited on white; of an animation, the first
    frame is used.

    Args:
      stream: the encoded image; it is closed.
      size: (Y, X) of the result, in pixels.
      crop: the part of the image to use; None: the largest crop, at the centre.
      max_pixels: an image of more pixels is not decoded.

    Returns:
      pixels, uint8 (Y, X, 3).

    Raises:
      BrokenRecord: it is not an image, truncated, too large, or grey in an unknown range.
    """
    with _opened(stream, max_pixels) as (image, orientation):
        target = size if orientation > 4 else size[::-1]  # width and height as stored
        margin = DRAFT_MARGIN / (crop.edge if crop else 1)
        image.draft('RGB', (math.ceil(margin * target[0]), math.ceil(margin * target[1])))
        box = _box(image.size, target, crop) if crop else _centre(image.size, target)
        profile = image.info.get('icc_profile')
        image = opaque(image, profile).resize(target, Image.Resampling.LANCZOS, box)
        image = to_srgb(image, profile)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return np.array(image)


def _centre(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box of the image that becomes the target; the rest of the image is never resized.

    Equals resizing the image to a whole number of pixels and then cropping it, since the filter
    reads beyond the box.
    """
    (w, h), (to_w, to_h) = size, target
    if w * to_h <= to_w * h:  # narrower than the target: the widths will be equal
        whole = to_w, to_w * h // w
    else:
        whole = to_h * w // h, to_h
    x, y = (whole[0] - to_w) // 2, (whole[1] - to_h) // 2
    scale_x, scale_y = w / whole[0], h / whole[1]
    right, bottom = min((x + to_w) * scale_x, w), min((y + to_h) * scale_y, h)
    return x * scale_x, y * scale_y, right, bottom


def _box(
    size: tuple[int, int], target: tuple[int, int], crop: Crop
) -> tuple[float, float, float, float]:
    """The box of an image that a crop selects; it has the target's shape."""
    (w, h), (to_w, to_h) = size, target
    scale = crop.edge * min(w / to_w, h / to_h)
    x, y = crop.x * max(w - scale * to_w, 0), crop.y * max(h - scale * to_h, 0)
    return x, y, min(x + scale * to_w, w), min(y + scale * to_h, h)
