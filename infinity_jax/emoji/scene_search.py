"""Finds the emoji of a scene in an image, wherever the grammar of scenes may place them.

At each place, every candidate is compared with the image. What an emoji explains there is how much
nearer it comes to the image than the bare background does. Of all sets of places that do not
overlap, that whose emoji together explain most is what the image shows.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from infinity_jax.emoji.image_spec import BACKGROUNDS
from infinity_jax.emoji.matcher import edge_colour, shrink
from infinity_jax.emoji.render import check_image_size, scene_placement
from infinity_jax.emoji.scene import MIN_CONTRAST, SCENE_PLACES
from infinity_jax.emoji.templates import Templates
from infinity_jax.errors import UserError

MIN_EXPLAINED = 0.3  # share of the difference from the background that an emoji has to explain
# Mean of the squared difference that it has to explain: half the contrast that scenes have.
MIN_SQUARE = (MIN_CONTRAST / 2) ** 2
PLACES = (None, *SCENE_PLACES)  # large and in the middle, then small
ROWS_AT_ONCE = 256  # images per matrix product, to bound memory
_IMPOSSIBLE = np.float32(-1e9)


class Found(NamedTuple):
    """An emoji in an image.

    Attributes:
      emoji: its name.
      place: of `SCENE_PLACES`; None: large, in the middle.
      box: left, top, right, bottom, in pixels of the image as compared.
      explained: share of the difference from the background, 1 for an exact copy.
    """

    emoji: str
    place: str | None
    box: tuple[float, float, float, float]
    explained: float


class Sight(NamedTuple):
    """What an image shows: the nearest background colour and the emoji on it."""

    background: str
    found: tuple[Found, ...]


def search(images: np.ndarray, candidates: Sequence[str]) -> list[Sight]:
    """Finds background and emoji in images.

    Args:
      images: uint8 (N, Y, X, 3), square.
      candidates: names of the emoji to look for.

    Raises:
      UserError: the images have another type or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise UserError(f'images are {images.dtype} {images.shape}; wanted uint8 (N, Y, Y, 3)')
    check_image_size(images.shape[1])
    return [
        sight
        for start in range(0, len(images), ROWS_AT_ONCE)
        for sight in _search(images[start : start + ROWS_AT_ONCE], tuple(candidates))
    ]


def _search(images: np.ndarray, candidates: tuple[str, ...]) -> list[Sight]:
    colours_N3 = edge_colour(images)
    palette = np.array(list(BACKGROUNDS.values()), np.float32)
    background_N = np.square(colours_N3[:, None] - palette).sum(-1).argmin(1)
    images = shrink(images)
    shape = (len(images), len(PLACES))
    best_NP = np.zeros(shape, np.int64)
    gain_NP, share_NP = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    boxes = [scene_placement(place, images.shape[1]) for place in PLACES]
    for edge in dict.fromkeys(edge for _, _, edge in boxes):
        templates = Templates(candidates, edge)
        for p, (top, left, _) in ((p, box) for p, box in enumerate(boxes) if box[2] == edge):
            crop = images[:, top : top + edge, left : left + edge]
            distance_NK, bare_N = templates.compare(crop, colours_N3)
            best_NP[:, p] = distance_NK.argmin(1)
            gain = -distance_NK.min(1)
            share_NP[:, p] = gain / np.maximum(bare_N, 1e-6)
            seen = (share_NP[:, p] >= MIN_EXPLAINED) & (gain >= MIN_SQUARE * edge**2)
            gain_NP[:, p] = np.where(seen, gain, _IMPOSSIBLE)
    layouts = _layouts()
    layout_N = (gain_NP @ layouts.T.astype(np.float32)).argmax(1)
    names = list(BACKGROUNDS)
    sights = []
    for n in range(len(images)):
        found = []
        for p in np.flatnonzero(layouts[layout_N[n]]).tolist():
            top, left, edge = boxes[p]
            box = (float(left), float(top), float(left + edge), float(top + edge))
            found.append(Found(candidates[best_NP[n, p]], PLACES[p], box, float(share_NP[n, p])))
        sights.append(Sight(names[background_N[n]], tuple(found)))
    return sights


@functools.cache
def _layouts() -> np.ndarray:
    """All sets of `PLACES` without overlap, the empty one first: bool (L, P)."""
    spots = list(itertools.product(range(3), range(3)))  # row and column, as in `SCENE_PLACES`
    sets: list[tuple[int, ...]] = [(), (0,)]
    for count in range(1, 5):
        for chosen in itertools.combinations(range(9), count):
            if all(_apart(spots[i], spots[j]) for i, j in itertools.combinations(chosen, 2)):
                sets.append(tuple(1 + i for i in chosen))
    layouts = np.zeros((len(sets), len(PLACES)), bool)
    for row, chosen in zip(layouts, sets, strict=True):
        row[list(chosen)] = True
    return layouts


def _apart(spot: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two small objects do not overlap: places next to each other do."""
    return max(abs(spot[0] - other[0]), abs(spot[1] - other[1])) == 2
