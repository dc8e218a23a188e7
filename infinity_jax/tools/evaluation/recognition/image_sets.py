"""Features of a folder of images, and distances between two such sets."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from infinity_jax.data.decode import decode
from infinity_jax.data.records import BrokenRecord, open_file
from infinity_jax.data.sources.folder import ENDINGS, image_paths
from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.image_metrics import frechet_distance
from infinity_jax.tools.evaluation.recognition.efficientnet import EDGE, RESIZED_EDGE, recognise

BATCH = 32
NAME = 'Fréchet distance of EfficientNet-Lite0 features (not FID)'
HALVES = 'the other half'
TILES = 4  # along each edge, of the copies with shuffled tiles


@dataclasses.dataclass(frozen=True)
class RecognisedImages:
    """A set of images with what the network sees in each.

    Attributes:
      paths: of the files.
      features_ND: the last features, (N, 1280).
      logits_NC: of ImageNet's classes, (N, 1000).
    """

    paths: tuple[pathlib.Path, ...]
    features_ND: np.ndarray
    logits_NC: np.ndarray


def open_image(path: pathlib.Path) -> np.ndarray:
    """The centre of an image at the network's resolution, uint8 (224, 224, 3).

    Raises:
      UserError: it cannot be read.
    """
    try:
        pixels = decode(open_file(path), (RESIZED_EDGE, RESIZED_EDGE))
    except (OSError, BrokenRecord) as error:
        raise UserError(f'{path}: not a readable image ({error}); repair or remove it') from None
    margin = (RESIZED_EDGE - EDGE) // 2
    return pixels[margin : margin + EDGE, margin : margin + EDGE]


def images_in(folder: pathlib.Path, count: int | None = None) -> tuple[pathlib.Path, ...]:
    """The first images of a folder and of the folders in it, by name.

    Raises:
      UserError: there are none.
    """
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; wanted a folder of images')
    paths = tuple(image_paths(folder)[:count])
    if not paths:
        raise UserError(f'{folder}: no images in it ({", ".join(ENDINGS)})')
    return paths


def recognise_files(
    params: Mapping[str, Any],
    paths: Sequence[pathlib.Path],
    change: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> RecognisedImages:
    """Runs the network on files.

    Args:
      params: of the network.
      paths: one or more images.
      change: applied to the pixels of each image, with its number.
    """
    features: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    starts = range(0, len(paths), BATCH)
    for start in tqdm(starts, 'recognising', unit='batch', disable=None):
        batch = [open_image(path) for path in paths[start : start + BATCH]]
        if change is not None:
            batch = [change(pixels, start + i) for i, pixels in enumerate(batch)]
        batch += batch[-1:] * (min(BATCH, len(paths)) - len(batch))  # one shape, one compilation
        found = recognise(params, np.stack(batch))
        for rows, arrays in zip((features, logits), found, strict=True):
            rows.append(np.asarray(arrays)[: len(paths) - start])
    return RecognisedImages(tuple(paths), np.concatenate(features), np.concatenate(logits))


def blurred(pixels_YX3: np.ndarray, number: int) -> np.ndarray:
    """A Gaussian blur of 3 pixels."""
    return np.asarray(Image.fromarray(pixels_YX3).filter(ImageFilter.GaussianBlur(3)))


def recoloured(pixels_YX3: np.ndarray, number: int) -> np.ndarray:
    """Red, green and blue in another order."""
    return np.ascontiguousarray(pixels_YX3[..., [1, 2, 0]])


def shuffled(pixels_YX3: np.ndarray, number: int) -> np.ndarray:
    """The tiles of a 4 × 4 grid in a random order; edges are cut to multiples of 4."""
    height, width = (edge // TILES for edge in pixels_YX3.shape[:2])
    pixels = pixels_YX3[: TILES * height, : TILES * width]
    tiles = pixels.reshape(TILES, height, TILES, width, 3).swapaxes(1, 2)
    tiles = tiles.reshape(TILES**2, height, width, 3)
    tiles = tiles[np.random.default_rng(number).permutation(TILES**2)]
    return tiles.reshape(TILES, TILES, height, width, 3).swapaxes(1, 2).reshape(pixels.shape)


CHANGES = {'blurred copies': blurred, 'recoloured copies': recoloured, 'shuffled tiles': shuffled}


def calibration(params: Mapping[str, Any], images: RecognisedImages) -> dict[str, float]:
    """Distances of one half of a set to the other half, and to changed copies of the other half.

    They say what a distance is worth for this set: the first is the one to expect between equal
    sources, and the others must be larger.

    Raises:
      UserError: fewer than four images.
    """
    if len(images.paths) < 4:
        raise UserError(f'{len(images.paths)} images; a distance wants 4 or more in each set')
    first, second = images.features_ND[::2], images.features_ND[1::2]
    distances = {HALVES: frechet_distance(first, second)}
    for name, change in CHANGES.items():
        copies = recognise_files(params, images.paths[1::2], change)
        distances[name] = frechet_distance(first, copies.features_ND)
    return distances


def nearest(images: RecognisedImages, others: RecognisedImages) -> tuple[np.ndarray, np.ndarray]:
    """For each image the number of the other image that is most alike, and the cosine of both."""
    unit, unit_others = (
        x.features_ND / np.linalg.norm(x.features_ND, axis=1, keepdims=True)
        for x in (images, others)
    )
    cosines = unit @ unit_others.T
    best = cosines.argmax(1)
    return best, cosines[np.arange(len(best)), best]
