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
STRIP = 128  # rows that are mixed at the same time
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
    share = _depths(inside, feather + 1)
    share /= max(share.max(), 1)
    share *= mask_YX
    return share


def _depths(inside_YX: np.ndarray, most: int) -> np.ndarray:
    """Distance in pixels to the nearest pixel outside, up to `most`, float32.

    Strip by strip, with as many rows around it as count: the transform of a whole photograph would
    take about a gigabyte.
    """
    depths = np.full(inside_YX.shape, most, np.float32)
    for start in range(0, len(inside_YX), STRIP):
        first, end = max(start - most, 0), start + STRIP
        part = inside_YX[first : end + most]
        if not part.all():  # else nothing outside is near
            near = ndimage.distance_transform_edt(part)[start - first : end - first]
            np.minimum(near, most, out=depths[start:end], casting='same_kind')
    return depths


def composite(
    source_YX3: np.ndarray, generated_YX3: np.ndarray, share_YX: np.ndarray
) -> np.ndarray:
    """The source with generated pixels to the given share, uint8; a share of 0 changes nothing."""
    mixed = np.empty_like(source_YX3)
    for start in range(0, len(mixed), STRIP):  # floats of a whole photograph would fill the memory
        rows = slice(start, start + STRIP)
        share = share_YX[rows, :, None]
        mixed[rows] = np.rint(source_YX3[rows] * (1 - share) + generated_YX3[rows] * share)
    return mixed


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
