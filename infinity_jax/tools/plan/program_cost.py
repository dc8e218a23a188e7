"""A program compiled for a TPU slice: its memory, its traffic and its time."""

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax

from infinity_jax.errors import UserError, first_line
from infinity_jax.runtime.compile_cache import without_compile_cache
from infinity_jax.tools.plan.collectives import CollectiveTotal, collectives_of, totals
from infinity_jax.tools.plan.hlo_text import HloProgram
from infinity_jax.tools.plan.program_time import (
    KERNEL,
    KernelFlops,
    ProgramTime,
    estimate_time,
    kernel_name,
)
from infinity_jax.tools.plan.topology import Topology

_TOO_LARGE = (
    re.compile(r'Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm'),
    re.compile(r'\(([\d.]+)([KMGT])\) exceeds available HBM \([\d.]+[KMGT]\)'),
)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a chip while a program runs.

    Attributes:
      arguments, outputs: parameters, batch, results.
      aliased: outputs that lie where donated arguments did, counted in both.
      temporaries: everything in between, at its worst moment.
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
    """What the compiler made of a program.

    Attributes:
      memory: None where it does not fit; `needed` then is what it would take.
      needed: bytes a chip.
      collectives: by kind, a step.
      kernels: Pallas kernels by name, runs a step.
      time: all loops counted; None where it does not fit.
      unknown_loops: loops that count once, since their number of turns is not in the text.
      compile_seconds: wall time.
    """

    memory: Memory | None
    needed: int
    collectives: dict[str, CollectiveTotal]
    kernels: dict[str, int]
    time: ProgramTime | None
    unknown_loops: tuple[str, ...]
    compile_seconds: float


def compile_program(
    lower: Callable[..., Any],
    arguments: Sequence[Any],
    topology: Topology,
    coordinates: Sequence[Sequence[int]],
    kernel_flops: KernelFlops,
) -> ProgramCost:
    """Lowers and compiles, and reads what came out.

    Args:
      lower: arguments -> `jax.stages.Lowered`.
      arguments: shapes with shardings.
      topology: what the shardings' devices are.
      coordinates: see `estimate_time`.
      kernel_flops: see `estimate_time`.
    """
    start = time.monotonic()
    lowered = lower(*arguments)
    try:
        with without_compile_cache():  # nothing here could load a slice's program from it
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = read_too_large(str(error))
        return ProgramCost(None, needed, {}, {}, None, (), time.monotonic() - start)
    took = time.monotonic() - start
    program = HloProgram(compiled.as_text())
    memory = memory_of(compiled)
    kernels: Counter[str] = Counter()
    for executed in program.executed():
        if KERNEL in executed.instruction.rest:
            kernels[kernel_name(executed.instruction)] += executed.times
    return ProgramCost(
        memory=memory,
        needed=memory.total,
        collectives=totals(collectives_of(program)),
        kernels=dict(kernels),
        time=estimate_time(program, topology, coordinates, kernel_flops),
        unknown_loops=tuple(program.unknown_loops),
        compile_seconds=took,
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
    """Bytes that a program would use, from the compiler's refusal of a program that does not fit.

    Raises:
      UserError: it is another refusal.
    """
    found = next((x for pattern in _TOO_LARGE if (x := pattern.search(message))), None)
    if found is None:
        raise UserError(
            f'the program does not compile: {first_line(message)}; try another mesh or topology'
        )
    return int(float(found[1]) * _UNITS[found[2]])
