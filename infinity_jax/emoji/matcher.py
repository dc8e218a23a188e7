"""Classifies the emoji and the background of an image by its nearest rendering in pixel space.

For every candidate emoji the requested image is rendered and compared with the generated one by the
sum of squared RGB differences. Size and place are those in the caption; if it mentions none, all
are tried and the nearest counts. The emoji are rendered on the colour of the image's edge, so that
a wrong background does not also make the emoji wrong.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from infinity_jax.emoji.image_spec import BACKGROUNDS, PLACES, SIZES, ImageSpec, pairs, sample_spec
from infinity_jax.emoji.render import check_image_size, margin, placement
from infinity_jax.emoji.templates import Templates
from infinity_jax.errors import UserError

MATCH_PIXELS = 64  # larger images are compared at this size
PLACEMENTS = (('large', 'centre'),) + tuple((s, p) for s in ('medium', 'small') for p in PLACES)
ROWS_AT_ONCE = 256  # images per matrix product, to bound memory
EVALUATED_PLACED_RATE = 0.3  # share of the evaluated images with a random size and place


@dataclasses.dataclass(frozen=True)
class MatchReport:
    """Result of the matcher for N images."""

    emoji_right: np.ndarray  # (N,) bool
    background_right: np.ndarray  # (N,) bool; also true where the caption mentions none
    nearest_emoji: tuple[str, ...]
    nearest_background: tuple[str, ...]

    @property
    def emoji_rate(self) -> float:
        """Share of images whose nearest emoji is the requested one."""
        return float(self.emoji_right.mean())

    @property
    def background_rate(self) -> float:
        """Share of images whose background is the requested one."""
        return float(self.background_right.mean())


def evaluation_specs(
    subset: str,
    pairs_of: str,
    count: int,
    seed: int = 0,
    placed_rate: float = EVALUATED_PLACED_RATE,
) -> list[ImageSpec]:
    """Samples `count` specs of the 'trained' or 'held_out' pairs; all mention the background.

    A pair is repeated only after every pair was used. `placed_rate` is the share of specs with a
    random size and place; the other emoji are large.
    """
    splits = {'trained': 'train', 'held_out': 'held_out'}
    if pairs_of not in splits:
        raise UserError(f'pairs {pairs_of!r} are unknown; choose one of {", ".join(splits)}')
    choices = pairs(subset, splits[pairs_of])
    rng = np.random.default_rng(seed)
    epochs = -(-count // len(choices))
    order = np.concatenate([rng.permutation(len(choices)) for _ in range(epochs)])
    return [
        sample_spec(rng, *choices[i], placed_rate=placed_rate, name_only_rate=0)
        for i in order[:count]
    ]


def alternatives(spec: ImageSpec) -> tuple[tuple[str, str], ...]:
    """The (size, place) pairs that agree with the caption of `spec`."""
    return tuple(
        (size, place)
        for size, place in PLACEMENTS
        if (size == spec.size or not spec.mention_size)
        and (place == spec.place or not spec.mention_place)
    )


def edge_colour(images: np.ndarray) -> np.ndarray:
    """Median colour, (N, 3), of the pixels along the edges, which an emoji never covers."""
    ring = np.ones(images.shape[1:3], bool)
    inside = slice(margin(len(ring)), -margin(len(ring)))
    ring[inside, inside] = False
    return np.median(images[:, ring], axis=1)


def match(images: np.ndarray, specs: Sequence[ImageSpec], candidates: Sequence[str]) -> MatchReport:
    """Compares images with their specs.

    Args:
      images: uint8 (N, Y, X, 3), square.
      specs: the requested image of each.
      candidates: names of the emoji to choose from; the emoji of each spec must be one of them.

    Raises:
      UserError: images, specs and candidates do not fit each other.
    """
    _check(images, specs, candidates)
    requested = np.array([spec.background for spec in specs])
    colours_N3 = edge_colour(images)
    names = np.array(list(BACKGROUNDS))
    palette = np.array(list(BACKGROUNDS.values()), np.float32)
    squared = ((colours_N3[:, None, :] - palette[None, :, :]) ** 2).sum(-1)
    nearest_background = names[squared.argmin(1)]
    mentioned = np.array([spec.mention_background for spec in specs])

    distance_NK = _distances(shrink(images), colours_N3, specs, tuple(candidates))
    nearest_emoji = np.array(candidates)[distance_NK.argmin(1)]
    return MatchReport(
        emoji_right=nearest_emoji == np.array([spec.emoji for spec in specs]),
        background_right=(nearest_background == requested) | ~mentioned,
        nearest_emoji=tuple(nearest_emoji.tolist()),
        nearest_background=tuple(nearest_background.tolist()),
    )


def _check(images: np.ndarray, specs: Sequence[ImageSpec], candidates: Sequence[str]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[0] != len(specs):
        raise UserError(
            f'images are {images.dtype} {images.shape}; wanted one uint8 (Y, X, 3) '
            f'for each of {len(specs)} specs'
        )
    if not len(specs) or images.shape[1] != images.shape[2]:
        raise UserError(f'images are {images.shape}; wanted at least one, and square')
    check_image_size(images.shape[1])
    missing = sorted({spec.emoji for spec in specs} - set(candidates))
    if missing:
        raise UserError(
            f'{missing[0]!r} is the emoji of a spec but not among the {len(candidates)} candidates'
        )


def shrink(images: np.ndarray) -> np.ndarray:
    """Images as float32 (N, Y, X, 3), reduced to `MATCH_PIXELS` by averaging if they are larger."""
    if images.shape[1] <= MATCH_PIXELS:
        return images.astype(np.float32)
    size = (MATCH_PIXELS, MATCH_PIXELS)
    small = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in images]
    return np.stack(small).astype(np.float32)


def _distances(
    images: np.ndarray,
    colours_N3: np.ndarray,
    specs: Sequence[ImageSpec],
    candidates: tuple[str, ...],
) -> np.ndarray:
    """Squared distance, (N, K), from each image to its best rendering of each candidate.

    The distance of an image to its bare background, the same for all candidates, is left out.
    """
    size = images.shape[1]
    options = [set(alternatives(spec)) for spec in specs]
    best_NK = np.full((len(specs), len(candidates)), np.inf, np.float32)
    for name in SIZES:
        edge = placement(name, 'centre', size)[2]
        templates = Templates(candidates, edge)
        for place in PLACES:
            rows = np.array([i for i, o in enumerate(options) if (name, place) in o], np.int64)
            top, left, _ = placement(name, place, size)
            for chunk in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
                crop = images[chunk, top : top + edge, left : left + edge]
                distance, _ = templates.compare(crop, colours_N3[chunk])
                best_NK[chunk] = np.minimum(best_NK[chunk], distance)
    return best_NK
