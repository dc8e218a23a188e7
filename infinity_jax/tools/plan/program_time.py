"""How long a compiled TPU program takes, estimated from its HLO text.

The TPU compiler writes its own estimate, in cycles, next to nearly every operation that computes.
Pallas kernels and collectives have none; their time is a roofline estimate.
"""

import dataclasses
import re
from collections.abc import Sequence

from infinity_jax.tools.plan.collectives import Collective, collectives_of
from infinity_jax.tools.plan.hlo_text import HloProgram, Instruction, num_bytes
from infinity_jax.tools.plan.kernel_flops import KERNEL, Arrays, KernelFlops, kernel_name
from infinity_jax.tools.plan.topology import Topology

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# Opcodes that read and write memory even if the compiler gives no estimate for them.
MOVES = (
    'copy', 'transpose', 'reshape', 'concatenate', 'pad', 'slice', 'broadcast', 'dynamic-slice',
    'dynamic-update-slice', 'reduce', 'scatter', 'gather', 'sort', 'convert', 'fusion',
)  # fmt: skip
PARTS = ('slice', 'dynamic-slice', 'gather')  # only the size of the result counts


@dataclasses.dataclass(frozen=True)
class ProgramTime:
    """Seconds per call on one chip.

    Attributes:
      estimated: operations, by the cycles that the compiler states.
      kernels: Pallas kernels, FLOP at the chip's peak.
      moved: operations without an estimate, bytes at the bandwidth of the memory.
      exposed: collectives that the chip waits for.
      hidden: collectives that run at the same time as other work.
    """

    estimated: float = 0.0
    kernels: float = 0.0
    moved: float = 0.0
    exposed: float = 0.0
    hidden: float = 0.0

    @property
    def total(self) -> float:
        return self.estimated + self.kernels + self.moved + self.exposed

    def __add__(self, other: 'ProgramTime') -> 'ProgramTime':
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return ProgramTime(*(a + b for a, b in pairs))

    def __sub__(self, other: 'ProgramTime') -> 'ProgramTime':
        return self + other * -1

    def __mul__(self, factor: float) -> 'ProgramTime':
        return ProgramTime(*(factor * part for part in dataclasses.astuple(self)))


def estimate_time(
    program: HloProgram,
    topology: Topology,
    coordinates: Sequence[Sequence[int]],
    kernel_flops: KernelFlops,
) -> ProgramTime:
    """The time of a program, every loop counted by its number of iterations.

    Overlapped collectives count by the time that they exceed the other work of their computation.

    Args:
      program: the compiled text.
      topology: the slice that it is for.
      coordinates: of each partition's chip in the torus.
      kernel_flops: (name, operands' dtypes and shapes) of a Pallas kernel -> FLOP.
    """
    work: dict[str, ProgramTime] = {}
    for executed in program.executed():
        known = program.shapes(executed.computation)
        spent = _operation_time(executed.instruction, known, topology, kernel_flops)
        spent *= executed.times
        work[executed.computation] = work.get(executed.computation, ProgramTime()) + spent
    waiting: dict[str, float] = {}
    exposed = hidden = 0.0
    for collective in collectives_of(program):
        seconds = collective.times * collective_seconds(collective, topology, coordinates)
        if collective.overlapped:
            waiting[collective.computation] = waiting.get(collective.computation, 0.0) + seconds
        else:
            exposed += seconds
    for computation, seconds in waiting.items():
        longer = max(seconds - work.get(computation, ProgramTime()).total, 0.0)
        exposed += longer
        hidden += seconds - longer
    return sum(work.values(), ProgramTime(exposed=exposed, hidden=hidden))


def collective_seconds(
    collective: Collective, topology: Topology, coordinates: Sequence[Sequence[int]]
) -> float:
    """Seconds per run: rings over all torus axes that the group spans, at full bandwidth."""
    group = collective.group or range(len(coordinates))
    places = [coordinates[i] for i in group]
    spanned = [a for a in range(topology.speed.axes) if len({place[a] for place in places}) > 1]
    if not spanned:
        return 0.0
    share = (len(places) - 1) / len(places)
    lengths = {axis: len({place[axis] for place in places}) for axis in spanned}
    bandwidth = sum(topology.ring_bandwidth(axis, length) for axis, length in lengths.items())
    if collective.kind == 'all-reduce':
        return 2 * share * collective.size / bandwidth
    if 'all-to-all' in collective.kind:
        return (
            share * collective.size / 4 / bandwidth
        )  # on average a quarter of the ring, both ways
    if collective.kind == 'collective-permute':
        return collective.size / topology.speed.link_bandwidth
    return share * collective.size / bandwidth


def _operation_time(
    instruction: Instruction,
    shapes: dict[str, Arrays],
    topology: Topology,
    kernel_flops: KernelFlops,
) -> ProgramTime:
    """The time of an operation; `shapes` has the results of all lines of its computation."""
    cycles = _CYCLES.search(instruction.rest)
    if cycles:
        return ProgramTime(estimated=int(cycles[1]) / topology.clock)
    operands = [array for name in instruction.operands for array in shapes.get(name, ())]
    if KERNEL in instruction.rest:
        flops = kernel_flops(kernel_name(instruction), operands)
        return ProgramTime(kernels=flops / topology.peak.bf16_flops)
    if instruction.opcode in MOVES:
        size = moved_bytes(instruction, shapes)
        return ProgramTime(moved=size / topology.speed.hbm_bandwidth)
    return ProgramTime()


def moved_bytes(instruction: Instruction, shapes: dict[str, Arrays]) -> int:
    """Bytes that an operation reads and writes; see `_operation_time`.

    An operation that takes a part of an array reads that part only. One that replaces a part writes
    that part only: the array is updated in place, or the text has a separate copy before it.
    """
    size = lambda arrays: sum(num_bytes(*array) for array in arrays)
    if instruction.opcode in PARTS:
        return 2 * size(instruction.arrays)
    if instruction.opcode == 'dynamic-update-slice':
        return 2 * size(shapes.get(instruction.operands[1], ()))
    operands = [array for name in instruction.operands for array in shapes.get(name, ())]
    return size((*operands, *instruction.arrays))
