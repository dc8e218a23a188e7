"""Times the stages of a program and two limits of each.

The limits are the stage's matrix products alone (`products`), and one large product, which shows
the peak of the device. Stage and limits run in turns, so that other load on the machine slows all
of them alike and the ratios stay valid.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from infinity_jax.tools.bench.products import BareProducts, Group, products_of, total_flops

LARGE_EDGE = {'cpu': 2048, 'gpu': 8192, 'tpu': 8192}  # rows of the matrices of the large product


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call of a function.

    Attributes:
      first: the first call, including compiling or loading its programs.
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
        """Of the fastest call; comparable on a shared CPU, where wall times are not."""
        return min(self.cpu)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a program that is measured.

    Attributes:
      name: in tables and JSON.
      run: runs the stage once; returns arrays to wait for.
      groups: its matrix products and convolutions, of all devices together.
    """

    name: str
    run: Callable[[], Any]
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, name: str, run: Callable[..., Any], plain: Callable[..., Any], *args) -> 'Stage':
        """A stage that calls `run(*args)`, with the products in the trace of `plain(*args)`."""
        return cls(name, lambda: run(*args), products_of(plain, *args))


@dataclasses.dataclass(frozen=True)
class StageResult:
    """The measurements of a stage.

    Attributes:
      real: the stage.
      bare: its products alone; None if they were not run.
      flops: of those products.
      peak_flops: FLOP/s of the large product, on all devices.
    """

    real: Timing
    bare: Timing | None
    flops: int
    peak_flops: float

    def to_json(self) -> dict[str, Any]:
        real, bare = self.real, self.bare
        figures = {
            'seconds': real.seconds,
            'fraction_of_peak': self.flops / real.seconds / self.peak_flops,
            'spread_seconds': real.spread,
            'cpu_seconds': real.cpu_seconds,
            'first_seconds': real.first,
            'tflop': self.flops / 1e12,
        }
        if bare is None:
            return figures
        return figures | {
            'bare_seconds': bare.seconds,
            'fraction_of_bare': bare.seconds / real.seconds,
            'bare_spread_seconds': bare.spread,
            'bare_cpu_seconds': bare.cpu_seconds,
            'fraction_of_bare_cpu': bare.cpu_seconds / max(real.cpu_seconds, 1e-9),
        }


@dataclasses.dataclass(frozen=True)
class Measured:
    """A bench run.

    Attributes:
      stages: results by name.
      peak_flops: FLOP/s of the large product, of its median call, times the chips.
      peak_memory: bytes, see `peak_memory`.
    """

    stages: dict[str, StageResult]
    peak_flops: float
    peak_memory: int


def measure(
    stages: list[Stage],
    *,
    repeats: int,
    warmup: int,
    dtype: str,
    profile: str | None = None,
    devices: int = 1,
    bare: bool = True,
) -> Measured:
    """Measures the stages one after another, each in turns with its bare products.

    Args:
      stages: in the order of the program.
      repeats: rounds that count, of each stage.
      warmup: rounds before them.
      dtype: of the large product.
      profile: folder for a trace of one more run of each stage; None: no trace.
      devices: that share a stage.
      bare: whether the bare products run, which takes longer; they do on one chip alone.
    """
    firsts = {stage.name: timed(stage.run)[0] for stage in stages}
    peak_bytes = peak_memory()  # before the bare products' operands
    results, rates = {}, []
    large, large_flops = large_product(dtype)
    for stage in stages:
        functions: dict[str, Callable[[], Any]] = {
            'real': stage.run,
            'large': large,
        }
        if bare and chips(devices) == 1:
            functions['bare'] = BareProducts(stage.groups)
        turns = take_turns(functions, repeats, warmup, stage.name)
        real = dataclasses.replace(turns['real'], first=firsts[stage.name])
        results[stage.name] = real, turns.get('bare'), total_flops(stage.groups)
        rates += [large_flops / seconds for seconds in turns['large'].wall]
    peak_flops = chips(devices) * float(np.median(rates))
    if profile is not None:
        with jax.profiler.trace(profile):
            for stage in stages:
                with jax.profiler.TraceAnnotation(stage.name):
                    jax.block_until_ready(stage.run())
    return Measured(
        {name: StageResult(*result, peak_flops) for name, result in results.items()},
        peak_flops,
        peak_bytes,
    )


def chips(devices: int) -> int:
    """The number of chips with so many devices.

    On a CPU it is one per process: its devices share the cores, all of which a large product uses.
    """
    return jax.process_count() if jax.default_backend() == 'cpu' else devices


def large_product(dtype: str) -> tuple[Callable[[], jax.Array], int]:
    """A function that multiplies two large square matrices, and the FLOP of a call."""
    edge = LARGE_EDGE.get(jax.default_backend(), LARGE_EDGE['gpu'])
    block = np.random.default_rng(0).standard_normal((edge, edge), dtype=np.float32)
    square = jnp.asarray(block, dtype)
    precision = 'highest' if dtype == 'float32' else 'default'
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    return lambda: multiply(square, square), 2 * edge**3


def peak_memory() -> int:
    """Peak bytes in use so far: of the first device, or of this process on a CPU.

    0 on Windows, which keeps no such figure for a process.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
        return stats['peak_bytes_in_use']
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == 'darwin' else 1024 * usage


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds until the result of a call is ready."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return time.perf_counter() - wall, time.process_time() - cpu


def take_turns(
    functions: Mapping[str, Callable[[], Any]], repeats: int, warmup: int, name: str
) -> dict[str, Timing]:
    """Times each function `repeats` times; every round runs all of them once.

    Args:
      functions: name -> function that returns arrays to wait for.
      repeats: rounds that count.
      warmup: rounds before them, after the first call of each function.
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
