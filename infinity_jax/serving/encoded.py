"""Pixels as image files in base64, with the settings in PNG files."""

import base64
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, PngImagePlugin


def in_base64(
    pixels_YX3: np.ndarray,
    output_format: str = 'png',
    quality: int = 100,
    metadata: Mapping[str, object] | None = None,
) -> str:
    """An image file in base64.

    Args:
      pixels_YX3: uint8.
      output_format: png, jpeg or webp.
      quality: of jpeg and webp, 0 to 100.
      metadata: text entries of a PNG file.
    """
    file = io.BytesIO()
    image = Image.fromarray(pixels_YX3)
    if output_format == 'png':
        info = PngImagePlugin.PngInfo()
        for key, value in (metadata or {}).items():
            info.add_text(key, str(value))
        image.save(file, 'PNG', pnginfo=info)
    else:
        image.save(file, output_format.upper(), quality=quality)
    return base64.b64encode(file.getvalue()).decode()
