"""95 % confidence intervals of accuracies and means, where images come in groups by prompt."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959964  # standard normal quantile of 0.975


class Estimate(NamedTuple):
    """A value and its 95 % confidence interval; None where there is too little data for one."""

    value: float
    low: float | None = None
    high: float | None = None


def accuracy(right_by_prompt: Sequence[Sequence[bool]]) -> Estimate:
    """Share of right images: Wilson's interval for as many independent images as they are worth.

    The images of a prompt succeed and fail together, so that they are worth fewer than they are:
    between one per prompt and all. The variance between prompts tells how many.

    Args:
      right_by_prompt: whether each image is right, for each prompt; none empty.
    """
    sizes = np.array([len(group) for group in right_by_prompt], np.float64)
    right = np.array([sum(group) for group in right_by_prompt], np.float64)
    images, prompts = sizes.sum(), len(sizes)
    share = float(right.sum() / images)
    worth = float(prompts)
    if prompts > 1 and 0 < share < 1:
        residuals = right - share * sizes
        variance = prompts / (prompts - 1) * np.square(residuals).sum() / images**2
        worth = share * (1 - share) / variance if variance > 0 else math.inf
    return wilson(share, min(max(worth, prompts), images))


def wilson(share: float, count: float) -> Estimate:
    """Wilson's score interval of a share of `count` independent trials."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    # Rounding may put a share of 0 or 1 outside of its interval.
    return Estimate(share, max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0))


def mean(values_by_prompt: Sequence[float], value: float | None = None) -> Estimate:
    """Mean of prompts, with the normal interval of their spread.

    Args:
      values_by_prompt: one number per prompt.
      value: the mean itself, where it is not that of these numbers.
    """
    values = np.asarray(values_by_prompt, np.float64)
    centre = float(values.mean()) if value is None else value
    if len(values) < 2:
        return Estimate(centre)
    half = Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(centre, centre - half, centre + half)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates.

    The distances to the bounds are combined like standard deviations (Zou and Donner 2008).
    """
    value = sum(each.value for each in estimates) / len(estimates)
    if any(each.low is None or each.high is None for each in estimates):
        return Estimate(value)
    below = math.hypot(*(each.value - (each.low or 0.0) for each in estimates))
    above = math.hypot(*((each.high or 0.0) - each.value for each in estimates))
    return Estimate(value, value - below / len(estimates), value + above / len(estimates))
