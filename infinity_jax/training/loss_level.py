"""Tells a loss that lies far above its recent level."""

import collections
import math

import numpy as np

WINDOW = 100  # last losses that make the level
JUDGED_FROM = 20  # losses seen before any is called a spike
DEVIATIONS = 8  # above the level, in standard deviations
LEAST_SHARE = 0.02  # above the level, however steady the losses were
SIGMA_OF_MEDIAN_DEVIATION = 1.4826  # of normally distributed numbers


class LossLevel:
    """The median of recent losses and their spread, which single outliers do not move."""

    def __init__(self):
        self._losses: collections.deque[float] = collections.deque(maxlen=WINDOW)

    def below(self, loss: float) -> float | None:
        """The level if `loss` is a spike above it, else None; `loss` then counts as recent.

        One that is not finite is skipped elsewhere, and leaves no trace here.
        """
        if not math.isfinite(loss):
            return None
        level = None
        if len(self._losses) >= JUDGED_FROM:
            losses = np.array(self._losses)
            median = float(np.median(losses))
            deviation = float(np.median(np.abs(losses - median))) * SIGMA_OF_MEDIAN_DEVIATION
            margin = max(DEVIATIONS * deviation, LEAST_SHARE * abs(median))
            level = median if loss > median + margin else None
        self._losses.append(loss)
        return level
