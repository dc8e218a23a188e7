"""Converts images of any mode and colour profile to 8-bit sRGB."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from infinity_jax.data.records import BrokenRecord

_RANGES = (1.0, 255.0, 65535.0)  # white in images of floats or 32-bit integers
_MODES = {'RGB': 'RGB', 'GRAY': 'L', 'CMYK': 'CMYK', 'Lab': 'LAB'}  # by a profile's colour space


def opaque(image: Image.Image, profile: bytes | None = None) -> Image.Image:
    """The image with 8 bits per channel and composited on white, in its own colours.

    Returns:
      an image in the mode that the profile describes, L, CMYK or LAB, and RGB in all other cases.

    Raises:
      BrokenRecord: the range of its grey values is unknown.
    """
    wanted = _mode(image, profile)
    if image.mode.startswith(('I', 'F')):
        image = _eight_bits(image)
    elif image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image if image.mode == wanted else image.convert(wanted)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts the result of `opaque`; a damaged profile or one of other channels is ignored."""
    transform = None
    if profile is not None or image.mode == 'LAB':
        transform = _transform(image.mode, profile)
    if transform is not None:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None  # only conversions in place return nothing
        return converted
    return image if image.mode == 'RGB' else image.convert('RGB')


def _mode(image: Image.Image, profile: bytes | None) -> str:
    """The mode in which an image is converted to sRGB."""
    if image.mode == 'LAB':
        return 'LAB'
    grey = image.mode.startswith(('1', 'L', 'I', 'F'))
    if profile is not None and (image.mode == 'CMYK' or grey):
        mode = 'L' if grey else 'CMYK'
        if _transform(mode, profile) is not None:
            return mode
    return 'RGB'


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or of floats as 8 bits.

    White is 65535 where the mode or format says so. Floats and 32-bit integers have no fixed
    white: it is the least of 1 (floats alone), 255 and 65535 that no pixel is above.
    """
    values = np.asarray(image)
    if image.mode != 'F' and (image.mode != 'I' or image.format in ('PNG', 'PPM')):
        white = 65535.0
    else:
        ranges = _RANGES if image.mode == 'F' else _RANGES[1:]
        least, most = float(values.min()), float(values.max())
        white = next((white for white in ranges if least >= 0 and most <= white), 0.0)
        if not white:  # so it is for NaN
            raise BrokenRecord(
                f'image has grey values from {least:g} to {most:g}; wanted 0 to 1, 255 or 65535'
            )
    grey = np.rint(values * np.float32(255 / white)).astype(np.uint8)
    key = image.info.get('transparency')
    if isinstance(key, int):
        grey = np.where(values == key, np.uint8(255), grey)
    return Image.fromarray(grey)


@functools.lru_cache(maxsize=32)  # most images of a data set share few profiles
def _transform(mode: str, profile: bytes | None) -> Any:
    """The transform from a profile to sRGB; None where there is none, or nothing to do."""
    try:
        if profile is None:
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile('LAB'))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _MODES.get(source.profile.xcolor_space.strip()) != mode:
            return None
        if 'srgb' in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile('sRGB'), mode, 'RGB')
    except Exception:  # of many kinds in a damaged profile; viewers ignore it too
        return None
