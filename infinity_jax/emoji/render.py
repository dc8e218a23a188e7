"""Renders the image of an `ImageSpec` or a `Scene`."""

from collections.abc import Sequence

import numpy as np

from infinity_jax.emoji import artwork
from infinity_jax.emoji.image_spec import BACKGROUNDS, SIZES, ImageSpec
from infinity_jax.emoji.scene import Scene
from infinity_jax.errors import UserError

SCENE_SIZE = 7 / 16  # edge of a small object of a scene over that of the image: 28 pixels of 64


def check_image_size(image_size: int) -> None:
    """Raises `UserError` unless `image_size` is a positive multiple of 8."""
    if image_size < 16 or image_size % 8:
        raise UserError(f'image_size {image_size} is not supported; use a multiple of 8 from 16')


def margin(image_size: int) -> int:
    """Pixels along every edge that an emoji never covers: 2 of 64."""
    return max(1, image_size // 32)


def placement(size: str, place: str, image_size: int) -> tuple[int, int, int]:
    """First row, first column and edge, in pixels, of the emoji in the image."""
    return _at(SIZES[size], place, image_size)


def scene_placement(place: str | None, image_size: int) -> tuple[int, int, int]:
    """The same of an object of a scene: small, at one of `SCENE_PLACES`, or large (None)."""
    if place is None:
        return placement('large', 'centre', image_size)
    return _at(SCENE_SIZE, place, image_size)


def _at(share: float, place: str, image_size: int) -> tuple[int, int, int]:
    edge = round(share * image_size)
    low, middle = margin(image_size), (image_size - edge) // 2
    high = image_size - edge - low
    top = low if place.startswith('top') else high if place.startswith('bottom') else middle
    left = low if place.endswith('left') else high if place.endswith('right') else middle
    return top, left, edge


def render(spec: ImageSpec, image_size: int = 64) -> np.ndarray:
    """The image, uint8 (Y, X, 3): the emoji composited on a flat background."""
    at = placement(spec.size, spec.place, image_size)
    return _composite(spec.background, [(spec.emoji, at)], image_size)


def render_scene(scene: Scene, image_size: int = 64) -> np.ndarray:
    """The image of a scene, uint8 (Y, X, 3)."""
    places = [scene_placement(place, image_size) for place in scene.places or (None,)]
    return _composite(scene.background, list(zip(scene.emoji, places, strict=True)), image_size)


def _composite(
    name: str, objects: Sequence[tuple[str, tuple[int, int, int]]], image_size: int
) -> np.ndarray:
    """Emoji, each with its first row, first column and edge, side by side on a background."""
    check_image_size(image_size)
    background = np.array(BACKGROUNDS[name], np.uint16)
    pixels = np.empty((image_size, image_size, 3), np.uint8)
    pixels[:] = background
    for emoji, (top, left, edge) in objects:
        rgba = artwork.sprite(emoji, edge)
        # Integers keep the cache small: uint8 sprites are a quarter of float32 ones.
        # At most 255 * 255, which uint16 holds.
        through = (np.uint16(255) - rgba[..., 3:]) * background
        pixels[top : top + edge, left : left + edge] = rgba[..., :3] + (through + 127) // 255
    return pixels
