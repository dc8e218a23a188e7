"""Parser of compiled HLO text: the instructions that a program executes, and how often.

The text has the body of a loop once. Here the body counts by the number of iterations.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_CALLEES = re.compile(
    r'\b(?:calls|to_apply|body|true_computation|false_computation|called_computations|'
    r'branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))'
)
_ARRAY = re.compile(r'\b(pred|[suf]\d+|bf16|f8\w+|f4\w+|c\d+)\[([\d,]*)\]')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COMPARE = re.compile(r'direction=(LT|NE)')
_CONSTANT = re.compile(r'^\((-?\d+)\)')
INSIDE = ('call', 'async-start', 'while', 'conditional')  # opcodes that execute computations


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO text: %name = shape opcode(operands), attributes."""

    name: str
    shape: str
    opcode: str
    rest: str  # operands in parentheses, then the attributes

    @property
    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        """(dtype, dimensions) of the result, or of each element of a tuple."""
        return arrays_of(self.shape)

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r'%([\w.\-]+)', self.rest[: _closing(self.rest)])

    @property
    def callees(self) -> list[str]:
        """Names of the computations that it calls, except the condition of a loop."""
        found = []
        for several, one in _CALLEES.findall(self.rest):
            found += [name.strip().lstrip('%') for name in several.split(',')] if several else [one]
        return found


@dataclasses.dataclass(frozen=True)
class Executed:
    """An executed instruction; those inside a fusion are left out.

    Attributes:
      computation: name of the computation that has it.
      times: runs per step.
      started_in: name of the computation whose `async-start` has it run at the same time as other
        work; '' where it runs in turn.
    """

    instruction: Instruction
    computation: str
    times: int
    started_in: str = ''


class HloProgram:
    """The computations of a compiled module.

    Attributes:
      unknown_loops: loops that count once because the text lacks their number of iterations.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ''
        self.unknown_loops: list[str] = []
        self._shapes: dict[str, dict[str, list[tuple[str, tuple[int, ...]]]]] = {}
        lines: list[Instruction] | None = None
        for line in text.splitlines():
            if lines is None:
                header = _HEADER.match(line)
                if header:
                    lines = self.computations.setdefault(header[2], [])
                    self.entry = header[2] if header[1] else self.entry
            elif line.rstrip() == '}':
                lines = None
            elif found := _INSTRUCTION.match(line):
                lines.append(_parse(found[1], found[2]))
            elif lines:  # the attributes of a kernel continue on the next lines
                lines[-1] = dataclasses.replace(lines[-1], rest=lines[-1].rest + line)

    def executed(self) -> Iterator[Executed]:
        """The executed instructions; those inside fusions are left out."""
        yield from self._walk(self.entry, 1)

    def shapes(self, computation: str) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
        """(dtype, dimensions) of the results of every line of a computation, by name."""
        if computation not in self._shapes:
            lines = self.computations[computation]
            self._shapes[computation] = {line.name: line.arrays for line in lines}
        return self._shapes[computation]

    def iterations(self, loop: Instruction) -> int:
        """Iterations of a `while`: as the compiler states, else the bound in its condition."""
        known = _TRIPS.search(loop.rest)
        if known:
            return int(known[1])
        condition = re.search(r'\bcondition=%?([\w.\-]+)', loop.rest)
        bound = self._bound(condition[1]) if condition else None
        if bound is None:
            if loop.name not in self.unknown_loops:
                self.unknown_loops.append(loop.name)
            return 1
        return bound

    def _walk(self, name: str, times: int, started_in: str = '') -> Iterator[Executed]:
        for instruction in self.computations[name]:
            yield Executed(instruction, name, times, started_in)
            if instruction.opcode in INSIDE:
                iterations = self.iterations(instruction) if instruction.opcode == 'while' else 1
                starts = instruction.opcode == 'async-start'
                outer = started_in or (name if starts else '')
                for callee in instruction.callees:
                    yield from self._walk(callee, times * iterations, outer)

    def _bound(self, condition: str) -> int | None:
        """The only integer constant that a condition, or a fusion in it, compares with.

        Scans count from 0 in steps of 1, so it is their number of iterations.
        """
        lines = list(self.computations[condition])
        for instruction in self.computations[condition]:
            if instruction.opcode == 'fusion':
                lines += [x for callee in instruction.callees for x in self.computations[callee]]
        constants = [_CONSTANT.match(x.rest) for x in lines if x.opcode == 'constant']
        values = {int(found[1]) for found in constants if found}
        compared = any(x.opcode == 'compare' and _COMPARE.search(x.rest) for x in lines)
        return values.pop() if compared and len(values) == 1 else None


def arrays_of(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, dimensions) of every array in the text of a shape."""
    return [
        (dtype, tuple(int(n) for n in dims.split(',') if n))
        for dtype, dims in _ARRAY.findall(shape)
    ]


def num_bytes(dtype: str, dims: tuple[int, ...]) -> int:
    """Bytes of an array without padding."""
    bits = 8 if dtype == 'pred' else int(re.findall(r'\d+', dtype)[0])
    return math.ceil(math.prod(dims) * bits / 8)


def _parse(name: str, text: str) -> Instruction:
    """Splits the text after `%name = `; the shape of a tuple is in parentheses."""
    end = _closing(text) if text.startswith('(') else text.index(' ')
    shape, text = text[:end], text[end:].lstrip()
    opcode, _, rest = text.partition('(')
    return Instruction(name, shape, opcode, '(' + rest)


def _closing(text: str) -> int:
    """Index after the parenthesis that closes the one at the start of `text`."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == '(') - (letter == ')')
        if depth == 0:
            return i + 1
    return len(text)
