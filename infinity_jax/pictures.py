"""Pixels in, PNG files out."""

import os
import pathlib
import tempfile
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from PIL import Image, PngImagePlugin

from infinity_jax.config import UserError


def from_uint8(pixels_BYX3: jax.Array) -> jax.Array:
    """8-bit pixels to float32 in [-1, 1]; float pixels pass unchanged."""
    if pixels_BYX3.dtype == jnp.uint8:
        return pixels_BYX3.astype(jnp.float32) / 127.5 - 1.0
    return pixels_BYX3


def save_png(
    path: str | os.PathLike, image: Image.Image, metadata: Mapping[str, object] | None = None
) -> None:
    """Writes a picture with text entries in the file's own metadata (tEXt or iTXt), or nothing.

    Raises:
      UserError: the file cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        info.add_text(key, str(value))
    path = pathlib.Path(path)
    partial = path.with_name(f'.{path.name}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(partial, format='PNG', pnginfo=info)
        os.replace(partial, path)
    except OSError as error:
        raise _unwritable(path, error) from None


def check_writable(path: str | os.PathLike) -> None:
    """Makes the folder of a picture that is yet to be drawn, and tries to write there.

    Raises:
      UserError: nothing can be written there.
    """
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(f'cannot write {path}: {error.strerror or error}; choose another place')
