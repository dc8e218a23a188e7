"""Masks of editing: which codes of a scale are the source's, and how pixels are composited.

Plain numpy. A mask is float32 (Y, X) at the source's size: 1 where the model generates, 0 where the
source is kept.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from infinity_jax.errors import UserError
from infinity_jax.scales import Grid
from infinity_jax.tokenizer.resize import area_matrix

NO_SHARE = 1e-6  # a covered share of a code's area up to this is rounding
FEATHER_SHARE = 64  # the default feather is the image's shorter edge divided by this


def kept_codes(mask_YX: np.ndarray, grids: Sequence[Grid]) -> list[np.ndarray]:
    """Per scale (h, w) bool: the codes of whose area the mask covers nothing.

    A code that the mask covers in part is generated: it has to be, where its residual describes
    the old content as well. Later scales repair what that changes outside of the mask.
    """
    shares = [
        area_matrix(mask_YX.shape[0], h) @ mask_YX @ area_matrix(mask_YX.shape[1], w).T
        for h, w in grids
    ]
    return [share <= NO_SHARE for share in shares]


def kept_scales(strength: float, scales: int) -> int:
    """The number of first scales whose bits are all the source's: all at strength 0, none at 1.

    Raises:
      UserError: the strength is outside of 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise UserError(f'strength is {strength}; wanted 0 (the source) to 1 (nothing of it)')
    return math.floor((1 - strength) * scales + 0.5)


def feathered(mask_YX: np.ndarray, feather: int | None = None) -> np.ndarray:
    """The share of generated pixels in a composite, float32 (Y, X).

    It is 0 wherever the mask is 0, and rises to the mask's value within `feather` pixels inside of
    it; within fewer where the mask is narrower, so that its middle is generated. The image's own
    border is no edge of the mask.

    Args:
      mask_YX: 0 to 1.
      feather: in pixels; None: 1/64 of the shorter edge. 0: a hard edge.

    Raises:
      UserError: a negative feather.
    """
    if feather is None:
        feather = max(1, min(mask_YX.shape) // FEATHER_SHARE)
    if feather < 0:
        raise UserError(f'feather is {feather} pixels; wanted 0 or more')
    inside = mask_YX > 0
    if feather == 0 or inside.all():
        return mask_YX
    depth = ndimage.distance_transform_edt(inside)
    ramp = np.minimum(depth / min(feather + 1, max(depth.max(), 1)), 1)
    return (mask_YX * ramp).astype(np.float32)


def composite(
    source_YX3: np.ndarray, generated_YX3: np.ndarray, share_YX: np.ndarray
) -> np.ndarray:
    """The source with generated pixels to the given share, uint8; a share of 0 changes nothing."""
    share = share_YX[..., None]
    mixed = source_YX3 * (1 - share) + generated_YX3 * share
    return np.rint(mixed).astype(np.uint8)


def extend(
    image_YX3: np.ndarray, size: tuple[int, int], at: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Puts an image on a larger canvas, for outpainting.

    Args:
      image_YX3: uint8.
      size: (Y, X) of the canvas.
      at: first row and column of the image on the canvas; None: in the middle.

    Returns:
      The canvas, uint8, which continues the image's border pixels, and its mask: 1 outside of the
      image.

    Raises:
      UserError: the image does not fit there.
    """
    height, width = image_YX3.shape[:2]
    room = size[0] - height, size[1] - width
    top, left = (room[0] // 2, room[1] // 2) if at is None else at
    if not (0 <= top <= room[0] and 0 <= left <= room[1]):
        raise UserError(
            f'an image of {width} x {height} pixels does not fit a canvas of {size[1]} x {size[0]} '
            f'at column {left} and row {top}; wanted a larger canvas or another place'
        )
    around = (top, room[0] - top), (left, room[1] - left)
    canvas = np.pad(image_YX3, (*around, (0, 0)), mode='edge')
    mask = np.pad(np.zeros((height, width), np.float32), around, constant_values=1)
    return canvas, mask


def canvas_size(size: tuple[int, int], wanted: tuple[int, int] | float) -> tuple[int, int]:
    """(Y, X) of a canvas for an image of this (Y, X).

    Args:
      size: of the image.
      wanted: of the canvas; or height / width, for the smallest canvas that holds the image.
    """
    if isinstance(wanted, tuple):
        return wanted
    height, width = size
    return max(height, round(width * wanted)), max(width, round(height / wanted))
