"""The collectives of a compiled program, read from its HLO text."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from infinity_jax.tools.plan.hlo_text import Executed, HloProgram, Instruction, num_bytes

KINDS = (
    'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all',
    'collective-permute', 'collective-broadcast',
)  # fmt: skip
START, DONE = 'AsyncCollectiveStart', 'AsyncCollectiveDone'
_MESH_GROUPS = re.compile(r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}')
_IOTA_GROUPS = re.compile(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?')
_LISTED_GROUPS = re.compile(r'replica_groups=\{\{([\d,]*)\}')
_PAIRS = re.compile(r'source_target_pairs=\{\{(\d+),(\d+)\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation.

    Attributes:
      kind: of `KINDS`.
      size: bytes of the whole buffer that a group shares: the output of an all-gather, the input
        of a reduce-scatter, the operand of an all-reduce or permute, the operands of all members
        of an all-to-all.
      group: partition ids of the first group; empty: all partitions.
      overlapped: whether other work of the program runs at the same time.
      computation: name of the computation that executes or starts it.
      times: runs per step.
    """

    kind: str
    size: int
    group: tuple[int, ...]
    overlapped: bool
    computation: str
    times: int


@dataclasses.dataclass(frozen=True)
class CollectiveTotal:
    """The collectives of one kind: runs per step, and bytes per chip as in `Collective.size`."""

    count: int
    bytes: int


def collectives_of(program: HloProgram) -> list[Collective]:
    """The collectives that a program executes.

    On TPU an asynchronous collective occurs in several fusions, under the same channel: it is
    counted where it starts.
    """
    found = [(e, i) for e in program.executed() for i in _inside(program, e.instruction)]
    started = {_channel(i) for e, i in found if _has(program, e.instruction, START)} - {None}
    results = []
    for executed, inner in found:
        outer = executed.instruction
        starts = _has(program, outer, START)
        if _channel(inner) in started and not starts or _has(program, outer, DONE):
            continue
        overlapped = starts or inner.opcode.endswith('-start') or bool(executed.started_in)
        results.append(_collective(program, executed, inner, overlapped))
    return results


def totals(collectives: list[Collective]) -> dict[str, CollectiveTotal]:
    """Runs and bytes by kind, most bytes first."""
    sums: dict[str, list[int]] = {}
    for collective in collectives:
        total = sums.setdefault(collective.kind, [0, 0])
        total[0] += collective.times
        total[1] += collective.times * collective.size
    largest = sorted(sums, key=lambda kind: -sums[kind][1])
    return {kind: CollectiveTotal(*sums[kind]) for kind in largest}


def _inside(program: HloProgram, outer: Instruction) -> Iterator[Instruction]:
    """`outer` if it is a collective, else the collectives in the computation that it fuses."""
    if outer.opcode.removesuffix('-start') in KINDS:
        yield outer
    elif outer.opcode == 'fusion':
        for callee in outer.callees:
            for inner in program.computations.get(callee, ()):
                yield from _inside(program, inner)


def _has(program: HloProgram, outer: Instruction, target: str) -> bool:
    if outer.opcode != 'fusion':
        return False
    lines = (x for callee in outer.callees for x in program.computations.get(callee, ()))
    return any(f'custom_call_target="{target}"' in x.rest for x in lines)


def _channel(instruction: Instruction) -> str | None:
    found = re.search(r'channel_id=(\d+)', instruction.rest)
    return found[1] if found else None


def _collective(
    program: HloProgram, executed: Executed, inner: Instruction, overlapped: bool
) -> Collective:
    kind, starting = inner.opcode.removesuffix('-start'), inner.opcode.endswith('-start')
    sizes = sorted(num_bytes(*array) for array in inner.arrays if array[1])
    if starting and kind != 'all-reduce':  # a tuple of operands and results; the larger half counts
        sizes = sizes[len(sizes) // 2 :]
    size, group = sum(sizes), _group(inner)
    if 'all-to-all' in kind or kind == 'reduce-scatter' and not starting:
        size *= max(len(group), 1)
    if kind == 'all-reduce' and executed.instruction.opcode == 'fusion':
        scattered = any('all-reduce-scatter' in name for name in executed.instruction.callees)
        kind = 'reduce-scatter' if scattered else kind
    computation = executed.started_in or executed.computation
    return Collective(kind, size, group, overlapped, computation, executed.times)


def _group(instruction: Instruction) -> tuple[int, ...]:
    """Partition ids of the first group, or of the first pair of a permute."""
    text = instruction.rest
    if found := _MESH_GROUPS.search(text):
        sizes = {n: int(s) for n, s in re.findall(r"'([\w.]+)'=(\d+)", found[1])}
        inside = set(re.findall(r"'([\w.]+)'", found[2]))
        ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        first = tuple(slice(None) if name in inside else 0 for name in sizes)
        return tuple(int(n) for n in np.ravel(ids[first]))
    if found := _IOTA_GROUPS.search(text):
        groups, dims = (tuple(int(n) for n in x.split(',')) for x in found.groups()[:2])
        ids = np.arange(math.prod(dims)).reshape(dims)
        if found[3]:
            ids = ids.transpose([int(n) for n in found[3].split(',')])
        return tuple(int(n) for n in ids.reshape(groups)[0])
    if found := _LISTED_GROUPS.search(text):
        return tuple(int(n) for n in found[1].split(',') if n)
    if found := _PAIRS.search(text):
        return tuple(int(n) for n in found.groups())
    return ()
