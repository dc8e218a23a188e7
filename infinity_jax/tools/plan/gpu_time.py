"""How long a compiled GPU program takes, by the roofline of its kernels.

A kernel takes the longer of its FLOP at the peak of their precision and its bytes at the bandwidth
of the memory, and the time to start it. A copy that runs at the same time as other kernels uses
the bandwidth that these leave.
"""

import collections
from collections.abc import Sequence

from infinity_jax.runtime.accelerators import DevicePeak, GpuCard
from infinity_jax.tools.plan.collectives import KINDS, Collective, collectives_of
from infinity_jax.tools.plan.gpu_topology import GpuTopology
from infinity_jax.tools.plan.hlo_text import INSIDE, Executed, HloProgram, Instruction, num_bytes
from infinity_jax.tools.plan.products import (
    ATTENTION,
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    OTHER,
    TF32,
    THREE_BFLOAT16,
    products_in,
)
from infinity_jax.tools.plan.program_time import ProgramTime

START_SECONDS = 2e-6  # of a kernel in a stream of small ones; less in a CUDA graph
NO_KERNEL = (
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'iota',
    'partition-id', *INSIDE,
)  # fmt: skip
READS_PART = ('slice', 'dynamic-slice', 'gather')
PASSES = ('bitcast', 'copy', 'convert', 'reshape', 'transpose')


def estimate_gpu_time(
    program: HloProgram, topology: GpuTopology, hosts: Sequence[int]
) -> ProgramTime:
    """The time of a program on each card, every loop counted by its number of iterations.

    Args:
      program: the compiled text.
      topology: the cards that it is for.
      hosts: of each partition's card.

    Returns:
      `kernels` are attention calls, `estimated` what multiplies otherwise, `moved` all else.
    """
    total = ProgramTime()
    overlapped = 0.0
    copies: dict[str, _Copies] = collections.defaultdict(_Copies)
    for executed in program.executed():
        total += _spent(program, executed, topology, copies[executed.computation])
    for collective in collectives_of(program):
        seconds = collective.times * exchange_seconds(collective, topology, hosts)
        if collective.overlapped:
            overlapped += seconds
        else:
            total += ProgramTime(exposed=seconds)
    hidden = min(overlapped, total.estimated + total.kernels + total.moved)
    return total + ProgramTime(exposed=overlapped - hidden, hidden=hidden)


class _Copies:
    """The copies of one computation that run at the same time as its kernels.

    They take the bandwidth of the memory that the kernels after them leave, in the order of their
    starts, until something waits for them. Kernels of loops inside leave none.
    """

    def __init__(self):
        self.seconds: dict[str, tuple[float, float]] = {}  # by name: in all, and left

    def start(self, name: str, seconds: float) -> None:
        self.seconds[name] = seconds, seconds

    def run(self, idle: float) -> None:
        """A kernel runs that leaves the memory idle for so many seconds."""
        for name, (whole, left) in self.seconds.items():
            used = min(left, idle)
            self.seconds[name] = whole, left - used
            idle -= used

    def wait(self, name: str) -> ProgramTime:
        whole, left = self.seconds.pop(name, (0.0, 0.0))
        return ProgramTime(moved=left, hidden=whole - left)


def _spent(
    program: HloProgram, executed: Executed, topology: GpuTopology, copies: _Copies
) -> ProgramTime:
    """The time of a line, with what it waits for; `copies` are those of its computation."""
    line = executed.instruction
    if line.opcode == 'fusion-done':
        return copies.wait(line.operands[0])
    if line.opcode in NO_KERNEL or line.opcode.endswith('-done') or _is_collective(line):
        return ProgramTime()
    read = kernel_bytes(program, executed.computation, line) / topology.speed.memory_bandwidth
    spent = _kernel_time(program, executed, topology, read)
    if line.opcode == 'fusion-start' and spent.moved:  # it multiplies nothing
        copies.start(line.name, executed.times * read)
        return ProgramTime()
    copies.run(spent.total - executed.times * read)
    return spent


def exchange_seconds(collective: Collective, topology: GpuTopology, hosts: Sequence[int]) -> float:
    """Seconds per run of a ring over the group, at the slowest link that it crosses."""
    group = collective.group or range(len(hosts))
    count = len(group)
    if count < 2:
        return 0.0
    card = topology.speed
    crosses = len({hosts[member] for member in group}) > 1
    bandwidth = card.network_bandwidth if crosses else card.link_bandwidth
    if collective.kind == 'collective-permute':
        return collective.size / bandwidth
    passes = 2 if collective.kind == 'all-reduce' else 1
    parts = count if 'all-to-all' in collective.kind else 1
    return passes * (count - 1) / count * collective.size / parts / bandwidth


def flops_per_second(peak: DevicePeak, card: GpuCard, precision: str) -> float:
    """The peak of a card for products of a precision."""
    return {
        FLOAT32: card.fp32_flops,
        THREE_BFLOAT16: card.tf32_flops / 3 or card.fp32_flops,
        TF32: card.tf32_flops or card.fp32_flops,
        BFLOAT16: peak.bf16_flops,
        FLOAT16: card.fp16_flops or peak.bf16_flops,
        OTHER: 2 * peak.bf16_flops,
    }[precision]


def _is_collective(line: Instruction) -> bool:
    return line.opcode.removesuffix('-start') in KINDS


def _kernel_time(
    program: HloProgram, executed: Executed, topology: GpuTopology, read: float
) -> ProgramTime:
    """The time of a kernel whose bytes take `read` seconds per run."""
    peak, card = topology.peak, topology.speed
    products = list(products_in(program, executed.computation, executed.instruction))
    busy = sum(p.flops / flops_per_second(peak, card, p.precision) for p in products)
    seconds = executed.times * (max(busy, read) + START_SECONDS)
    if any(product.kind == ATTENTION for product in products):
        return ProgramTime(kernels=seconds)
    return ProgramTime(estimated=seconds) if products else ProgramTime(moved=seconds)


def kernel_bytes(program: HloProgram, computation: str, line: Instruction) -> int:
    """Bytes that a kernel reads and writes.

    Of an array from which a fusion takes parts alone it reads these parts; an array in which it
    replaces a part is changed in place.
    """
    shapes = program.shapes(computation)
    size = lambda arrays: sum(num_bytes(*array) for array in arrays)
    if line.opcode in READS_PART:
        return 2 * size(line.arrays)
    if line.opcode == 'dynamic-update-slice':
        return 2 * size(shapes.get(line.operands[1], ()))
    if line.opcode not in ('fusion', 'fusion-start') or not line.callees:
        return size(line.arrays) + sum(size(shapes.get(name, ())) for name in line.operands)
    body = program.computations[line.callees[0]]
    inner = program.shapes(line.callees[0])
    updates = [x for x in body if x.opcode == 'dynamic-update-slice']
    replaced = {_source(body, x.operands[0]) for x in updates}
    total = sum(2 * size(inner.get(x.operands[1], ())) for x in updates)
    if not updates:
        total += size(body[-1].arrays)  # of a copy that only starts here too
    for parameter in (x for x in body if x.opcode == 'parameter'):
        if parameter.name in replaced:
            continue
        users = _users(body, parameter.name)
        whole = size(parameter.arrays)
        if users and all(x.opcode in READS_PART for x in users):
            total += min(whole, sum(size(x.arrays) for x in users))
        else:
            total += whole
    return total


def _users(body: Sequence[Instruction], name: str) -> list[Instruction]:
    """What reads an array inside a fusion, through other views of it."""
    users = []
    for line in (x for x in body if name in x.operands):
        users += _users(body, line.name) if line.opcode in PASSES else [line]
    return users


def _source(body: Sequence[Instruction], name: str) -> str:
    """The name of the array of which `name` is another view or copy inside a fusion."""
    lines = {line.name: line for line in body}
    while name in lines and lines[name].opcode in PASSES:
        name = lines[name].operands[0]
    return name
