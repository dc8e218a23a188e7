"""Images for the evaluation of a tokenizer, and PNG pairs of originals and reconstructions."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from infinity_jax.data.decode import decode
from infinity_jax.data.records import BrokenRecord, open_file
from infinity_jax.data.sources.folder import ENDINGS, image_paths
from infinity_jax.emoji.matcher import evaluation_specs
from infinity_jax.emoji.render import render
from infinity_jax.errors import UserError
from infinity_jax.images import check_writable, save_png

PAIR = ('gt', 'pred')  # folders of originals and reconstructions


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Square images, each read when it is needed.

    Attributes:
      count: number of images.
      size: pixels of an edge.
      read: number from 0 on -> uint8 (size, size, 3).
    """

    count: int
    size: int
    read: Callable[[int], np.ndarray]

    def batches(self, at_once: int) -> Iterator[np.ndarray]:
        """uint8 (B, size, size, 3) in order; the last one may be smaller."""
        for start in range(0, self.count, at_once):
            numbers = range(start, min(start + at_once, self.count))
            yield np.stack([self.read(number) for number in numbers])


def emoji_images(subset: str, count: int, size: int) -> ImageSet:
    """Renders of held-out pairs of the embedded emoji; the same ones in every call.

    Raises:
      UserError: there is no such subset.
    """
    specs = evaluation_specs(subset, 'held_out', count)
    return ImageSet(count, size, lambda number: render(specs[number], size))


def folder_images(data: str, count: int, size: int) -> ImageSet:
    """The first images of a folder by name, resized to cover the square and cut at the centre.

    Raises:
      UserError: there is no such folder, or no image in it.
    """
    folder = pathlib.Path(data)
    if not data or not folder.is_dir():
        raise UserError(f"--data {data!r}: no such folder; wanted 'emoji' or a folder of images")
    paths = image_paths(folder)[:count]
    if not paths:
        raise UserError(f'--data {data}: no images in it ({", ".join(ENDINGS)})')
    return ImageSet(len(paths), size, lambda number: _open_square(paths[number], size))


def _open_square(path: pathlib.Path, size: int) -> np.ndarray:
    try:
        return decode(open_file(path), (size, size))  # as in training
    except (OSError, BrokenRecord) as error:
        raise UserError(f'{path}: not a readable image ({error}); repair or remove it') from None


def claim_pairs(folder: pathlib.Path) -> None:
    """Creates the two folders of `save_pairs`.

    Raises:
      UserError: a folder cannot be written, or has files, which would be mixed with the new ones.
    """
    for name in PAIR:
        check_writable(folder / name / 'x.png')
        if any((folder / name).iterdir()):
            raise UserError(
                f'--save {folder}: {folder / name} has files in it; name a new folder or empty it'
            )


def save_pairs(
    folder: pathlib.Path, start: int, originals: np.ndarray, reconstructions: np.ndarray
) -> None:
    """Writes gt/NUMBER.png and pred/NUMBER.png.

    Args:
      start: number of the first image.
      originals, reconstructions: uint8 (B, Y, X, 3).

    Raises:
      UserError: a file cannot be written.
    """
    for name, images in zip(PAIR, (originals, reconstructions), strict=True):
        for number, pixels in enumerate(images, start):
            save_png(folder / name / f'{number:06}.png', Image.fromarray(pixels))
