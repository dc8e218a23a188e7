"""Measures stages of a program against two limits that are measured beside them.

The limits: the stage's own products run bare (`bench_products`), and the device's best large
product. All take turns, so that their ratios stand where a machine is not idle.
"""

import dataclasses
import resource
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.tools.bench.products import BareProducts, Group, products_of, total_flops
from infinity_jax.tools.bench.timing import Timing, take_turns, timed

LARGE_EDGE = {'cpu': 2048, 'gpu': 8192, 'tpu': 8192}  # of the square matrices of the large product


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a program to be measured.

    Attributes:
      name: in tables and JSON.
      run: runs it once; returns arrays to wait for.
      groups: its products.
    """

    name: str
    run: Callable[[], Any]
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, name: str, run: Callable[..., Any], plain: Callable[..., Any], *args) -> 'Stage':
        """A stage that calls `run(*args)`; the products are those that `plain(*args)` traces to."""
        return cls(name, lambda: run(*args), products_of(plain, *args))


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What was measured of a stage.

    Attributes:
      real, bare: the stage and its bare products.
      flops: of those products.
      peak_flops: FLOP/s of the large product.
    """

    real: Timing
    bare: Timing
    flops: int
    peak_flops: float

    def to_json(self) -> dict[str, Any]:
        real, bare = self.real, self.bare
        return {
            'seconds': real.seconds,
            'bare_seconds': bare.seconds,
            'fraction_of_bare': bare.seconds / real.seconds,
            'fraction_of_peak': self.flops / real.seconds / self.peak_flops,
            'spread_seconds': real.spread,
            'bare_spread_seconds': bare.spread,
            'cpu_seconds': real.cpu_seconds,
            'bare_cpu_seconds': bare.cpu_seconds,
            'fraction_of_bare_cpu': bare.cpu_seconds / max(real.cpu_seconds, 1e-9),
            'first_seconds': real.first,
            'tflop': self.flops / 1e12,
        }


@dataclasses.dataclass(frozen=True)
class Measured:
    """A bench run.

    Attributes:
      stages: results by name.
      peak_flops: FLOP/s of the large product, of its median call.
      peak_memory: bytes, see `peak_memory`.
    """

    stages: dict[str, StageResult]
    peak_flops: float
    peak_memory: int


def measure(
    stages: list[Stage], *, repeats: int, warmup: int, dtype: str, profile: str | None = None
) -> Measured:
    """Measures stages one after the other, each in turns with its bare products.

    Args:
      stages: in the order of the program.
      repeats, warmup: rounds of each stage.
      dtype: of the large product.
      profile: a folder for a trace of one more run of each stage.
    """
    firsts = {stage.name: timed(stage.run)[0] for stage in stages}
    peak_bytes = peak_memory()  # before the bare products' operands
    results, rates = {}, []
    large, large_flops = large_product(dtype)
    for stage in stages:
        functions = {'real': stage.run, 'bare': BareProducts(stage.groups), 'large': large}
        turns = take_turns(functions, repeats, warmup, stage.name)
        real = dataclasses.replace(turns['real'], first=firsts[stage.name])
        results[stage.name] = real, turns['bare'], total_flops(stage.groups)
        rates += [large_flops / seconds for seconds in turns['large'].wall]
    peak_flops = float(np.median(rates))
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


def large_product(dtype: str) -> tuple[Callable[[], jax.Array], int]:
    """A product of two large square matrices, and its FLOP."""
    edge = LARGE_EDGE.get(jax.default_backend(), LARGE_EDGE['gpu'])
    block = np.random.default_rng(0).standard_normal((edge, edge), dtype=np.float32)
    square = jnp.asarray(block, dtype)
    precision = 'highest' if dtype == 'float32' else 'default'
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    return lambda: multiply(square, square), 2 * edge**3


def peak_memory() -> int:
    """Bytes at the peak so far: of the first device, or of this process where that is the CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
        return stats['peak_bytes_in_use']
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == 'darwin' else 1024 * usage
