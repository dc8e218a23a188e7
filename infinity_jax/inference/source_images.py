"""Images to edit, of any kind that training data may have, as upright opaque sRGB pixels."""

import io
import os
import pathlib
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from infinity_jax.data.colours import opaque, to_srgb
from infinity_jax.data.decode import MAX_PIXELS, decode, upright_size
from infinity_jax.data.records import BrokenRecord
from infinity_jax.errors import UserError

Source = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


def read_image(source: Source, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of a source, uint8 (Y, X, 3), at its own size.

    Read as training data is: turned upright, in sRGB, transparent images on white, of an animation
    the first frame.

    Args:
      source: a path, an encoded image, a PIL image, or pixels, uint8 (Y, X, 3).
      max_pixels: an encoded image of more pixels is not decoded.

    Raises:
      UserError: it is no image, damaged, or too large.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise UserError(
                f'image is an array {source.dtype} {source.shape}; wanted uint8 (Y, X, 3)'
            )
        return source
    try:
        if isinstance(source, Image.Image):
            profile = source.info.get('icc_profile')
            return np.array(to_srgb(opaque(ImageOps.exif_transpose(source), profile), profile))
        size = upright_size(_opened(source), max_pixels)
        return decode(_opened(source), size, max_pixels=max_pixels)
    except BrokenRecord as error:
        raise UserError(f'{_name(source)}: {error}; wanted an image') from None


def read_mask(source: Source, size: tuple[int, int]) -> np.ndarray:
    """A mask as float32 (Y, X), 1 where the model generates.

    In a mask with transparent pixels these are generated, as in OpenAI's interface; else white is
    generated and black is kept.

    Args:
      source: a path, an encoded image, a PIL image, or an array (Y, X): bool, floats 0 to 1, or
        uint8.
      size: (Y, X) of the image that it belongs to.

    Raises:
      UserError: it is no mask, has another size, or covers nothing.
    """
    if isinstance(source, np.ndarray):
        mask = source.astype(np.float32) / (255 if source.dtype == np.uint8 else 1)
    else:
        mask = _mask_of_image(source)
    if mask.shape != size:
        shape = ' x '.join(map(str, mask.shape[::-1]))
        raise UserError(
            f'{_name(source, "mask")} has {shape} pixels, the image {size[1]} x {size[0]}; wanted '
            'the same size'
        )
    if not (np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
        raise UserError(f'{_name(source, "mask")} has values outside of 0 to 1')
    if not mask.any():
        raise UserError(
            f'{_name(source, "mask")} marks no pixel; paint white, or erase, what is to be '
            'generated'
        )
    return mask


def _mask_of_image(source: str | os.PathLike[str] | bytes | Image.Image) -> np.ndarray:
    try:
        if isinstance(source, Image.Image):
            image = source
        else:
            upright_size(_opened(source))  # checks kind and size before any pixel is decoded
            image = Image.open(_opened(source))
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            alpha = np.asarray(image.convert('RGBA').getchannel('A'), np.float32)
            if alpha.min() < 255:
                return 1 - alpha / 255
    except BrokenRecord as error:
        raise UserError(f'{_name(source)}: {error}; wanted an image') from None
    except (OSError, SyntaxError, ValueError) as error:  # as Pillow reports damage
        raise UserError(f'{_name(source)}: mask cannot be read: {error}') from None
    return np.asarray(Image.fromarray(read_image(image)).convert('L'), np.float32) / 255


def resized(pixels_YX3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels, uint8 (Y, X, 3), at another (Y, X) by Lanczos; stretched where shapes differ."""
    if pixels_YX3.shape[:2] == size:
        return pixels_YX3
    image = Image.fromarray(pixels_YX3).resize(size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(image)


def _opened(source: str | os.PathLike[str] | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return pathlib.Path(source).open('rb')
    except OSError as error:
        raise UserError(f'{source}: {error.strerror or error}; wanted an image') from None


def _name(source: Source, other: str = 'image') -> str:
    return str(source) if isinstance(source, str | os.PathLike) else other
