"""Ranges of the numbers in configurations: one check, one form of message."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from infinity_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`.

    Attributes:
      low, high: the ends, which belong to the range unless `above` or `below` is set.
      whole: whether only whole numbers are wanted.
      above: whether `low` itself is excluded.
      below: whether `high` itself is excluded.
    """

    low: float
    high: float
    whole: bool = True
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        if self.above:
            return f'above {self.low:g}, up to {self.high:g}'
        kind = 'a whole number from ' if self.whole else ''
        high = f'{self.high}' if self.whole else f'{self.high:g}'
        return f'{kind}{self.low} {"up to below" if self.below else "to"} {high}'

    def has(self, value: Any) -> bool:
        """Whether `value` is a number of this range; True, NaN and infinity are none."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if not isinstance(value, int) and not math.isfinite(value):
            return False
        low = self.low < value if self.above else self.low <= value
        return low and (value < self.high if self.below else value <= self.high)


def real(low: float, high: float, *, above: bool = False, below: bool = False) -> Range:
    """Numbers that need not be whole."""
    return Range(low, high, False, above, below)


RATE = real(0, 1)
COUNT = Range(1, 10**9)  # of steps and records; 32 bits hold it
SEED = Range(0, 2**32 - 1)  # jax takes a larger one modulo 2^32
LARGEST_EDGE = 2**16  # widths, channels and lengths


def check_ranges(config: Any, where: str, ranges: Mapping[str, Range]) -> None:
    """Raises `UserError` for the first field of a dataclass that is outside of its range.

    Args:
      config: the dataclass. Fields that are tuples have every element in the range.
      where: what precedes the field in the whole configuration, such as 'transformer.'.
      ranges: field -> range.
    """
    for name, wanted in ranges.items():
        value = getattr(config, name)
        for each in value if isinstance(value, tuple) else (value,):
            if not wanted.has(each):
                raise UserError(f'config field {where}{name} is {short(value)}; wanted {wanted}')


def short(value: Any) -> str:
    """A value as Python writes it, in one line and cut after 60 characters, for messages."""
    try:
        text = ' '.join(repr(value).split())
    except ValueError:  # an integer of more than 4,300 digits
        return 'a number of thousands of digits'
    return text if len(text) <= 60 else f'{text[:60]}…'
