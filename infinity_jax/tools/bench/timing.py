"""Timing of functions that take turns, so that whatever else a machine does hits all alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from tqdm import tqdm


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one function.

    Attributes:
      first: the first call, with compiling or loading its programs.
      wall: each later call.
      cpu: processor time of each later call, all threads together.
    """

    first: float
    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return statistics.median(self.wall)

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest call."""
        return min(self.wall), max(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """Of the least disturbed call; on a CPU shared with others this compares, walls do not."""
        return min(self.cpu)


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds until the result of one call is there."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return time.perf_counter() - wall, time.process_time() - cpu


def take_turns(
    functions: Mapping[str, Callable[[], Any]], repeats: int, warmup: int, name: str
) -> dict[str, Timing]:
    """Times each function `repeats` times, one after the other in every round.

    Args:
      functions: name to what returns arrays to wait for.
      repeats: rounds that count.
      warmup: rounds before them; the first call of each counts by itself.
      name: of the progress bar.
    """
    first = {name: timed(function)[0] for name, function in functions.items()}
    rounds = [
        {name: timed(function) for name, function in functions.items()}
        for _ in tqdm(range(warmup + repeats), name, unit='round', leave=False)
    ][warmup:]
    return {
        name: Timing(
            first[name],
            tuple(each[name][0] for each in rounds),
            tuple(each[name][1] for each in rounds),
        )
        for name in functions
    }
