"""Scale schedules: the grids, coarse to fine, on which an image is coded (paper 3.2, app. A).

Pure numpy, without models or devices.
"""

import dataclasses
import functools
import itertools
import math
import re

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.ranges import Range

STRIDE = 16  # pixels per token along an edge, in the released models
SQUARE = '1.000'  # the ratio of square images, by its name in RATIOS

# Grids (h, w) of the full budget for images at least as tall as wide, by height/width ratio.
_TALL = {
    '1.000': '1,1 2,2 4,4 6,6 8,8 12,12 16,16 20,20 24,24 32,32 40,40 48,48 64,64',
    '1.250': '1,1 2,2 3,3 5,4 10,8 15,12 20,16 25,20 30,24 35,28 45,36 55,44 70,56',
    '1.333': '1,1 2,2 4,3 8,6 12,9 16,12 20,15 24,18 28,21 36,27 48,36 60,45 72,54',
    '1.500': '1,1 2,2 3,2 6,4 9,6 15,10 21,14 27,18 33,22 39,26 48,32 63,42 78,52',
    '1.750': '1,1 2,2 3,3 7,4 11,6 14,8 21,12 28,16 35,20 42,24 56,32 70,40 84,48',
    '2.000': '1,1 2,2 4,2 6,3 10,5 16,8 22,11 30,15 38,19 46,23 60,30 74,37 90,45',
    '2.500': '1,1 2,2 5,2 10,4 15,6 20,8 25,10 30,12 40,16 50,20 65,26 80,32 100,40',
    '3.000': '1,1 2,2 6,2 9,3 15,5 21,7 27,9 36,12 45,15 54,18 72,24 90,30 111,37',
}
# The inverse ratios swap height and width; their names truncate to three decimals.
_WIDE = {'0.800': '1.250', '0.750': '1.333', '0.666': '1.500', '0.571': '1.750',
         '0.500': '2.000', '0.400': '2.500', '0.333': '3.000'}  # fmt: skip

Grid = tuple[int, int]


def _parse(text: str) -> tuple[Grid, ...]:
    pairs = (pair.split(',') for pair in text.split())
    return tuple((int(h), int(w)) for h, w in pairs)


RATIOS: dict[str, tuple[Grid, ...]] = {name: _parse(text) for name, text in _TALL.items()}
RATIOS |= {name: tuple((w, h) for h, w in RATIOS[tall]) for name, tall in _WIDE.items()}

# A pixel budget is a prefix of the grids: about 256^2, 512^2, 768^2 and 1024^2 pixels.
BUDGETS: dict[str, int] = {'0.06M': 7, '0.25M': 10, '0.60M': 12, '1M': 13}
# Edge in pixels of a budget's square image -> the budget: 256, 512, 768, 1024.
BUDGET_OF_EDGE = {STRIDE * RATIOS['1.000'][n - 1][0]: name for name, n in BUDGETS.items()}


EDGE = Range(1, 4096)  # of a grid, in tokens
MOST_SCALES = 256


@dataclasses.dataclass(frozen=True)
class ScaleSchedule:
    """The token grids of one image shape.

    Attributes:
      grids: (h, w) of each scale's tokens, coarse to fine.
      full_grid: the grid that RoPE positions refer to: the last of the full 13-scale schedule of
        this ratio, for every budget; of a free schedule, its own last grid.
    """

    grids: tuple[Grid, ...]
    full_grid: Grid

    def __post_init__(self):
        grids = self.grids
        if len(grids) > MOST_SCALES:
            raise UserError(f'scale schedule has {len(grids)} scales; wanted {MOST_SCALES} at most')
        pairs = all(
            len(grid) == 2 and all(map(EDGE.has, grid)) for grid in (*grids, self.full_grid)
        )
        if not grids or not pairs:
            raise UserError(
                f'scale schedule {grids} is not a list of grids (h, w), each 1 or more and '
                f'{EDGE.high} at most, or its full grid {self.full_grid} is not one'
            )
        for previous, grid in itertools.pairwise(grids):
            if grid[0] < previous[0] or grid[1] < previous[1]:
                raise UserError(f'scale schedule {grids} shrinks at {grid}; list it coarse to fine')

    @classmethod
    def for_image(cls, ratio: float | str, budget: str) -> 'ScaleSchedule':
        """The released schedule of a pixel budget for the ratio height/width nearest to `ratio`.

        Raises:
          UserError: the budget or the ratio is unknown.
        """
        if budget not in BUDGETS:
            raise UserError(f'unknown pixel budget {budget!r}; choose one of {", ".join(BUDGETS)}')
        grids = RATIOS[nearest_ratio(ratio)]
        return cls(grids[: BUDGETS[budget]], grids[-1])

    @classmethod
    def free(cls, grids) -> 'ScaleSchedule':
        """A schedule of any grids, such as ((1, 1), (2, 2), (4, 4), (8, 8))."""
        try:
            grids = tuple((int(h), int(w)) for h, w in grids)
        except (TypeError, ValueError):
            raise UserError(f'scale schedule {grids!r} is not a list of grids (h, w)') from None
        return cls(grids, grids[-1] if grids else (1, 1))

    @classmethod
    def of_released_code(cls, grids) -> 'ScaleSchedule':
        """A schedule as the released code reads its grids.

        The first grids of a released ratio are that ratio's prefix, so that positions count on its
        full grid. Fewer than three grids begin several ratios and, like all others, are free.
        """
        schedule = cls.free(grids)
        fulls = [full for full in RATIOS.values() if full[: len(schedule)] == schedule.grids]
        return cls(schedule.grids, fulls[0][-1]) if len(fulls) == 1 else schedule

    def __len__(self) -> int:
        return len(self.grids)

    @functools.cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of each scale's tokens in the sequence."""
        ends = tuple(itertools.accumulate(h * w for h, w in self.grids))
        return tuple(zip((0, *ends[:-1]), ends, strict=True))

    @property
    def num_tokens(self) -> int:
        """L: tokens of all scales."""
        return self.spans[-1][1]

    @functools.cached_property
    def scale_of_token(self) -> np.ndarray:
        """(L,) int32: the zero-based scale of each token."""
        sizes = [h * w for h, w in self.grids]
        return np.repeat(np.arange(len(self), dtype=np.int32), sizes)

    def code_grids(self, patchify: bool) -> tuple[Grid, ...]:
        """Grids of the tokenizer's codes: twice the token grids under spatial patchify."""
        factor = 2 if patchify else 1
        return tuple((factor * h, factor * w) for h, w in self.grids)

    def image_size(self, stride: int = STRIDE) -> Grid:
        """(height, width) in pixels at `stride` pixels per token."""
        h, w = self.grids[-1]
        return h * stride, w * stride

    def rope_positions(self) -> np.ndarray:
        """(L, 2) int32 row and column of each token on the full grid.

        Row i of a scale has position round_half_even(i * (H / h)), in float32 as released.
        """
        positions = []
        for h, w in self.grids:
            rows = _stretch(h, self.full_grid[0])
            columns = _stretch(w, self.full_grid[1])
            grid = np.stack(np.meshgrid(rows, columns, indexing='ij'), axis=-1)
            positions.append(grid.reshape(-1, 2))
        return np.concatenate(positions).astype(np.int32)


def _stretch(n: int, full: int) -> np.ndarray:
    return np.round(np.arange(n, dtype=np.float32) * np.float32(full / n))


def nearest_ratio(ratio: float | str) -> str:
    """Name of the released schedule nearest to a height/width ratio.

    Raises:
      UserError: a name that is no number, or a ratio that is not positive and finite.
    """
    if isinstance(ratio, str) and ratio in RATIOS:
        return ratio
    try:
        value = float(ratio)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(
            f'unknown ratio {ratio!r}; give height/width as a positive number or one of '
            f'{", ".join(sorted(RATIOS))}'
        )
    return min(RATIOS, key=lambda name: abs(float(name) - value))


def height_over_width_of(aspect_ratio: str) -> float:
    """Height / width of an aspect ratio such as '16:9', which is width:height.

    Raises:
      UserError: no two positive numbers with a colon between them.
    """
    match = re.fullmatch(r'(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)', aspect_ratio, re.ASCII)
    width, height = (float(part) for part in match.groups()) if match else (0.0, 0.0)
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise UserError(
            f'{aspect_ratio!r} is not an aspect ratio; wanted WIDTH:HEIGHT, two positive numbers '
            'such as 16:9, 1:1 or 3:2'
        )
    return height / width


def nearest_size(height: int, width: int) -> tuple[str, str]:
    """Names of the released ratio and budget for an image of height x width pixels.

    The ratio is the nearest one. The budget is the smallest whose image has at least as many pixels
    as requested, or the largest one.
    """
    if min(height, width) < 1:
        raise UserError(f'image of {height} x {width} pixels; wanted 1 or more along each edge')
    ratio = nearest_ratio(height / width)
    for budget in BUDGETS:
        image_size = ScaleSchedule.for_image(ratio, budget).image_size()
        if math.prod(image_size) >= height * width:
            break
    return ratio, budget


def released_name(schedule: ScaleSchedule) -> tuple[str, str] | None:
    """(ratio, budget) of a released schedule; None for a free one."""
    for ratio, grids in RATIOS.items():
        for budget, scales in BUDGETS.items():
            if schedule == ScaleSchedule(grids[:scales], grids[-1]):
                return ratio, budget
    return None
