"""Pixels and image files: conversion to and from 8 bits, PSNR, PNG, JPEG and contact sheets.

Pixels are float32 in [-1, 1] in networks and uint8 in files.
"""

import json
import os
import pathlib
import tempfile
import textwrap
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from infinity_jax.errors import UserError
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.runtime.remote import any_path, is_remote
from infinity_jax.runtime.remote_copy import check_store, local_output

PAIR = ('gt', 'pred')  # folders of true images, and of reconstructions or generated images
MAX_COMMENT = 65533  # bytes in a JPEG's comment
TRIAL_BYTES = 1 << 20


def from_uint8(pixels_BYX3: jax.Array) -> jax.Array:
    """8-bit pixels to float32 in [-1, 1]; float pixels are returned unchanged."""
    if pixels_BYX3.dtype == jnp.uint8:
        return pixels_BYX3.astype(jnp.float32) / 127.5 - 1.0
    return pixels_BYX3


def to_uint8(pixels_BYX3: jax.Array) -> jax.Array:
    """Decoder output to 8 bits: clamped to [-1, 1], scaled and truncated, as released."""
    clamped = jnp.clip(pixels_BYX3, -1, 1)
    return ((clamped + 1) / 2 * 255).astype(jnp.uint8)


def psnr(pixels_BYX3: jax.Array, target_BYX3: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB, averaged over images; range 2, first argument clamped."""
    difference = jnp.clip(pixels_BYX3, -1.0, 1.0) - target_BYX3
    error = jnp.mean(jnp.square(difference), axis=(1, 2, 3))
    return jnp.mean(10.0 * jnp.log10(4.0 / jnp.maximum(error, 1e-10)))


def save_png(
    path: str | os.PathLike, image: Image.Image, metadata: Mapping[str, object] | None = None
) -> None:
    """Writes a PNG file; if that fails, no file remains.

    Args:
      path: of the file; missing folders are made.
      image: the image.
      metadata: text entries of the file (tEXt or iTXt).

    Raises:
      UserError: the file cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        info.add_text(key, str(value))
    path = any_path(path)
    try:
        with local_output(path) as place, atomic_file(place) as temporary:
            image.save(temporary, format='PNG', pnginfo=info)
    except OSError as error:
        raise _unwritable(path, error) from None


def save_image(path: str | os.PathLike, image: Image.Image, metadata: Mapping[str, object]) -> None:
    """Writes a PNG or JPEG file, by the ending of its name; if that fails, no file remains.

    Args:
      path: ends in .png, .jpg or .jpeg; missing folders are made.
      image: the image. JPEG has quality 95 and colours of full resolution.
      metadata: text entries; a JPEG has them as JSON in its comment.

    Raises:
      UserError: the file cannot be written.
    """
    path = any_path(path)
    if path.suffix.lower() == '.png':
        return save_png(path, image, metadata)
    comment = json.dumps({key: str(value) for key, value in metadata.items()})
    try:
        with local_output(path) as place, atomic_file(place) as temporary:
            image.save(
                temporary, format='JPEG', quality=95, subsampling=0,
                comment=comment.encode()[:MAX_COMMENT],
            )  # fmt: skip
    except OSError as error:
        raise _unwritable(path, error) from None


def check_writable(path: str | os.PathLike) -> None:
    """Makes the folder of an image before it is generated, and tries to write 1 MiB there.

    Raises:
      UserError: nothing can be written there.
    """
    path = any_path(path)
    if is_remote(path):
        return check_store(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(TRIAL_BYTES))  # a full disk shows here
            file.flush()
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(f'cannot write {path}: {error.strerror or error}; choose another place')


def claim_pairs(folder: pathlib.Path) -> None:
    """Creates the two folders of `save_pairs`.

    Raises:
      UserError: a folder cannot be written, or has files, which would be mixed with the new ones.
    """
    for name in PAIR:
        check_writable(folder / name / 'x.png')
        if any((folder / name).iterdir()):
            raise UserError(
                f'save {folder}: {folder / name} has files in it; name a new folder or empty it'
            )


def save_pairs(folder: pathlib.Path, start: int, originals: np.ndarray, others: np.ndarray) -> None:
    """Writes gt/NUMBER.png and pred/NUMBER.png.

    Args:
      start: number of the first image.
      originals, others: uint8 (B, Y, X, 3).

    Raises:
      UserError: a file cannot be written.
    """
    for name, images in zip(PAIR, (originals, others), strict=True):
        for number, pixels in enumerate(images, start):
            save_png(folder / name / f'{number:06}.png', Image.fromarray(pixels))


def contact_sheet(
    images: np.ndarray | Sequence[np.ndarray],
    captions: Sequence[str],
    marks: Sequence[bool] | None = None,
    columns: int = 8,
    cell: int = 128,
) -> Image.Image:
    """Draws a grid of images with their captions below.

    Args:
      images: uint8 (Y, X, 3) each, of any sizes.
      captions: one per image.
      marks: one per image; True: a green frame, False: a red one. None: no frames.
      columns: images per row, at most.
      cell: edge of an image on the sheet, in pixels.
    """
    columns = max(min(columns, len(images)), 1)
    font = ImageFont.load_default(11)
    lines = [textwrap.wrap(text, cell // 6) or [''] for text in captions]
    height = cell + 4 + 13 * max(map(len, lines))
    rows = -(-len(images) // columns)
    sheet = Image.new('RGB', (columns * (cell + 12) + 12, rows * (height + 12) + 12), 'white')
    pen = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = 12 + i % columns * (cell + 12), 12 + i // columns * (height + 12)
        if marks is not None:
            colour = (20, 160, 60) if marks[i] else (210, 40, 40)
            pen.rectangle((x - 4, y - 4, x + cell + 3, y + cell + 3), fill=colour)
        enlarged = Image.fromarray(image).resize((cell, cell), Image.Resampling.BICUBIC)
        sheet.paste(enlarged, (x, y))
        pen.multiline_text(
            (x, y + cell + 4), '\n'.join(lines[i]), fill='black', font=font, spacing=1
        )
    return sheet
