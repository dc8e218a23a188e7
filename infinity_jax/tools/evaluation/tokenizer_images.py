"""Images for the evaluation of a tokenizer: renders of emoji, or those of a folder."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from infinity_jax.data.decode import decode
from infinity_jax.data.records import BrokenRecord, open_file
from infinity_jax.data.sources.folder import ENDINGS, image_paths
from infinity_jax.emoji.matcher import evaluation_specs
from infinity_jax.emoji.render import render
from infinity_jax.errors import UserError


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
