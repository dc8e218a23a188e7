"""Decodes, resizes and crops images."""

import contextlib
import math
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from infinity_jax.data.records import BrokenRecord

DRAFT_MARGIN = 2  # a JPEG is decoded at a fraction of its size, at least twice the target
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


class Crop(NamedTuple):
    """A crop of an image: its edge relative to the largest crop, x and y to the remaining room."""

    edge: float  # above 0, up to 1
    x: float  # 0 to 1, as stored: before a photo is turned upright
    y: float


@contextlib.contextmanager
def _opened(stream: BinaryIO) -> Iterator[tuple[Image.Image, int]]:
    """The image, of which only the header is read, and its EXIF orientation.

    Raises:
      BrokenRecord: reading the header, or the image inside the context, fails.
    """
    try:
        with stream, Image.open(stream) as image:
            # In a PNG, Pillow would decode all pixels to look for EXIF after them.
            stated = image.getexif().get(0x0112) if image.format != 'PNG' else None
            yield image, stated if stated in _UPRIGHT else 1  # it may be text
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise BrokenRecord(f'image cannot be read: {error}') from None
    except Image.DecompressionBombError as error:
        raise BrokenRecord(str(error)) from None


def upright_size(stream: BinaryIO) -> tuple[int, int]:
    """(height, width) of an image as a viewer shows it; only the header is read.

    Raises:
      BrokenRecord: it is not an image.
    """
    with _opened(stream) as (image, orientation):
        return image.size if orientation > 4 else image.size[::-1]


def decode(stream: BinaryIO, size: tuple[int, int], crop: Crop | None = None) -> np.ndarray:
    """Decodes an image, resizes it (Lanczos) so that it covers `size`, and crops it to `size`.

    Transparent images are composited on white.

    Args:
      stream: the encoded image; it is closed.
      size: (Y, X) of the result, in pixels.
      crop: the part of the image to use; None: the largest crop, at the centre.

    Returns:
      pixels, uint8 (Y, X, 3).

    Raises:
      BrokenRecord: it is not an image, truncated, or not of 8 bits per channel.
    """
    with _opened(stream) as (image, orientation):
        target = size if orientation > 4 else size[::-1]  # width and height as stored
        margin = DRAFT_MARGIN / (crop.edge if crop else 1)
        image.draft('RGB', (math.ceil(margin * target[0]), math.ceil(margin * target[1])))
        box = _box(image.size, target, crop) if crop else _centre(image.size, target)
        image = _rgb(image).resize(target, Image.Resampling.LANCZOS, box)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return np.array(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(('I', 'F')):
        raise BrokenRecord(f'image has pixels of kind {image.mode}, not of 8 bits per channel')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image if image.mode == 'RGB' else image.convert('RGB')


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
