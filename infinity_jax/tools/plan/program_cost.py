"""A program compiled for devices that need not exist: its memory, collectives and time."""

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from infinity_jax.errors import UserError, first_line
from infinity_jax.runtime.compile_cache import without_compile_cache
from infinity_jax.tools.plan.collectives import CollectiveTotal, collectives_of, totals
from infinity_jax.tools.plan.gpu_time import estimate_gpu_time
from infinity_jax.tools.plan.gpu_topology import GpuTopology, lacks_tf32
from infinity_jax.tools.plan.hlo_text import HloProgram
from infinity_jax.tools.plan.kernel_flops import KERNEL, KernelFlops, kernel_name
from infinity_jax.tools.plan.products import counted
from infinity_jax.tools.plan.program_time import ProgramTime, estimate_time
from infinity_jax.tools.plan.topology import Devices

_TOO_LARGE = (
    re.compile(r'Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm'),
    re.compile(r'\(([\d.]+)([KMGT])\) exceeds available HBM \([\d.]+[KMGT]\)'),
)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class AbstractProgram(NamedTuple):
    """A program that can be lowered without arrays.

    Attributes:
      lower: arguments -> `jax.stages.Lowered`.
      arguments: ShapeDtypeStructs with shardings.
    """

    lower: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per chip while a program runs.

    Attributes:
      arguments: parameters, state and batch.
      outputs: results.
      aliased: outputs in the buffers of donated arguments, counted in both.
      temporaries: intermediate arrays, at the peak.
      code: the program itself.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """The cost of a compiled program.

    Attributes:
      memory: None if the program does not fit.
      needed: bytes per chip, whether it fits or not.
      collectives: by kind, per step.
      kernels: runs of Pallas kernels per step, by name.
      products: runs of products, convolutions and attention calls per step, by precision.
      time: all loops counted; None if the program does not fit.
      unknown_loops: loops that count once because the text lacks their number of iterations.
      compile_seconds: wall time.
    """

    memory: Memory | None
    needed: int
    collectives: dict[str, CollectiveTotal]
    kernels: dict[str, int]
    products: dict[str, int]
    time: ProgramTime | None
    unknown_loops: tuple[str, ...]
    compile_seconds: float


def compile_program(
    lower: Callable[..., Any],
    arguments: Sequence[Any],
    topology: Devices,
    coordinates: Sequence[Sequence[int]],
    kernel_flops: KernelFlops,
) -> ProgramCost:
    """Lowers and compiles a program, and reads its cost from the compiled text.

    Args:
      lower: see `AbstractProgram`.
      arguments: see `AbstractProgram`.
      topology: the shardings' devices.
      coordinates: see `estimate_time`; of a GPU, its host.
      kernel_flops: see `estimate_time`.
    """
    start = time.monotonic()
    lowered = lower(*arguments)
    try:
        with without_compile_cache():  # no backend here can load a program of a slice
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = read_too_large(str(error))
        return ProgramCost(None, needed, {}, {}, {}, None, (), time.monotonic() - start)
    seconds = time.monotonic() - start
    program = HloProgram(compiled.as_text())
    memory = memory_of(compiled)
    kernels: Counter[str] = Counter()
    for executed in program.executed():
        if KERNEL in executed.instruction.rest:
            kernels[kernel_name(executed.instruction)] += executed.times
    if isinstance(topology, GpuTopology):
        spent = estimate_gpu_time(program, topology, [place[0] for place in coordinates])
    else:
        spent = estimate_time(program, topology, coordinates, kernel_flops)
    return ProgramCost(
        memory=memory,
        needed=memory.total,
        collectives=totals(collectives_of(program)),
        kernels=dict(kernels),
        products=counted(program, lacks_tf32(topology)),
        time=spent,
        unknown_loops=tuple(program.unknown_loops),
        compile_seconds=seconds,
    )


def memory_of(compiled: Any) -> Memory:
    """The compiler's memory analysis of one device."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def read_too_large(message: str) -> int:
    """Bytes that a program would use, from the compiler's message that it does not fit.

    Raises:
      UserError: it is another message.
    """
    found = next((x for pattern in _TOO_LARGE if (x := pattern.search(message))), None)
    if found is None:
        raise UserError(
            f'the program does not compile: {first_line(message)}; try another mesh or topology'
        )
    return int(float(found[1]) * _UNITS[found[2]])
