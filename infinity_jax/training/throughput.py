"""Throughput of a run: steps, images, model FLOP/s, and the share of the devices' peak (MFU).

Model FLOP/s are the `training.flops` of the trained networks, forward and backward, over the time
of the steps. Frozen networks and recomputed operations are not counted. MFU divides by the dense
bfloat16 peak of all devices, also where the run has another precision.
"""

import time

from jax.sharding import Mesh

from infinity_jax.runtime.accelerators import peak_of

TERA = 1e12


def mesh_peak(mesh: Mesh) -> float | None:
    """bfloat16 FLOP/s of all devices together; None where the peak is unknown."""
    peak = peak_of(mesh.devices.flat[0].device_kind)
    return None if peak is None else mesh.devices.size * peak.bf16_flops


class Stopwatch:
    """Rates over the steps that finished since the last reading.

    Args:
      batch_size: images per step, over all devices.
      peak_flops: FLOP/s of all devices; None leaves MFU out.

    Attributes:
      readings: number of them; the first one includes compilation.
    """

    def __init__(self, batch_size: int, peak_flops: float | None):
        self._batch_size, self._peak, self.readings = batch_size, peak_flops, 0
        self.restart()

    def restart(self) -> None:
        """Starts a new interval now."""
        self._start, self._steps, self._flops, self._waited = time.monotonic(), 0, 0.0, 0.0

    def add_wait(self, seconds: float) -> None:
        """Adds the time that the loop waited for a batch."""
        self._waited += seconds

    def add_step(self, flops: float) -> None:
        """Counts a finished step of that many model FLOP."""
        self._steps += 1
        self._flops += flops

    def read(self) -> dict[str, float]:
        """The rates of the interval, which holds at least one step; starts the next interval."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = self._flops / elapsed
        rates = {
            'step_seconds': elapsed / self._steps,
            'pictures_per_second': self._steps * self._batch_size / elapsed,
            'data_wait_seconds': self._waited / self._steps,
            'model_tflops_per_second': rate / TERA,
        }
        if self._peak is not None:
            rates['mfu'] = rate / self._peak
        self.readings += 1
        self.restart()
        return rates


def time_left(steps: int, step_seconds: float) -> str:
    """A sentence on how long the next steps take, in a unit that people would choose."""
    seconds = steps * step_seconds
    if seconds >= 5400:
        amount = f'{seconds / 3600:.1f} hours'
    elif seconds >= 90:
        amount = f'{seconds / 60:.0f} minutes'
    else:
        amount = f'{seconds:.0f} seconds'
    return f'{step_seconds:.2g} s per step: {steps:,} more steps take about {amount}'


def shown(rates: dict[str, float]) -> dict[str, float]:
    """The rates that the progress bar shows, under short names."""
    short = {
        'pictures_per_second': 'images/s',
        'model_tflops_per_second': 'TFLOP/s',
        'mfu': 'MFU',
    }
    return {short[name]: rate for name, rate in rates.items() if name in short}
