"""Matrix products, convolutions and attention calls in compiled HLO text: FLOP and precision.

XLA has several names for them: `dot` and `convolution`, alone or inside a fusion, and on a GPU
calls of cuBLAS and cuDNN.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

from infinity_jax.tools.plan.hlo_text import HloProgram, Instruction, arrays_of

FLOAT32, THREE_BFLOAT16, TF32, BFLOAT16, FLOAT16, OTHER = (
    'float32', 'bfloat16_3x', 'tf32', 'bfloat16', 'float16', 'other'
)  # fmt: skip
ATTENTION, PRODUCT, CONVOLUTION = 'attention', 'product', 'convolution'
GEMM, CONV, FMHA = '__cublas$', '__cudnn$conv', '__cudnn$fmha'
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
# As an attribute, and in the configuration of a cuBLAS call.
_PRECISION = re.compile(r'operand_precision=\{(\w+)|"operand_precision":\s*\["(\w+)"')
_CONTRACTED = re.compile(r'lhs_contracting_dims=\{([\d,]*)\}')
_GEMM_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]')
_LABELS = re.compile(r'dim_labels=\w+_(\w+)->\w+')
_LAYOUTS = re.compile(r'operand_layout_constraints=\{(.*?\})\}')
BACKWARD = 2.5  # FLOP of attention's backward pass over those of the forward pass


@dataclasses.dataclass(frozen=True)
class Product:
    """An operation whose time is mostly multiplication.

    Attributes:
      kind: `PRODUCT`, `CONVOLUTION` or `ATTENTION`.
      precision: of the multiplication: `FLOAT32`, `THREE_BFLOAT16` (three passes in fewer bits),
        `TF32` (float32 operands whose precision is left to the hardware), `BFLOAT16`, `FLOAT16`,
        or `OTHER`, such as int8.
      flops: per run.
    """

    kind: str
    precision: str
    flops: float


def products_in(program: HloProgram, computation: str, outer: Instruction) -> Iterator[Product]:
    """The products that an executed instruction consists of.

    Args:
      program: the compiled text.
      computation: name of the one that has the instruction.
      outer: the instruction; a fusion is searched. What an `async-start` runs is executed itself.
    """
    if outer.opcode in ('fusion', 'fusion-start'):
        for callee in outer.callees:
            for inner in program.computations.get(callee, ()):
                yield from products_in(program, callee, inner)
    elif outer.opcode in ('dot', 'convolution', 'custom-call'):
        found = _product(program, computation, outer)
        if found is not None:
            yield found


def counted(program: HloProgram, lacks_tf32: bool = False) -> dict[str, int]:
    """Runs per step by 'kind precision', such as 'convolution float32'; most frequent first.

    Args:
      program: the compiled text.
      lacks_tf32: the card multiplies float32 in no other way.
    """
    runs: Counter[str] = Counter()
    for executed in program.executed():
        for product in products_in(program, executed.computation, executed.instruction):
            precision = product.precision
            if lacks_tf32 and precision in (THREE_BFLOAT16, TF32):
                precision = FLOAT32
            runs[f'{product.kind} {precision}'] += executed.times
    return dict(runs.most_common())


def _product(program: HloProgram, computation: str, line: Instruction) -> Product | None:
    target = _TARGET.search(line.rest)
    name = target[1] if target else line.opcode
    operands = operand_arrays(program, computation, line)
    results = [array for array in line.arrays if array[1]]
    if not results:
        return None
    result = math.prod(results[0][1])
    if name.startswith(FMHA):
        return Product(ATTENTION, BFLOAT16, _attention_flops(line, 'Backward' in name))
    if len(operands) < 2:
        return None
    (dtype, left), (_, right) = operands[:2]
    precision = precision_of(dtype, line.rest)
    if name == 'dot' or name.startswith(GEMM):
        contracted = (_CONTRACTED if name == 'dot' else _GEMM_CONTRACTED).search(line.rest)
        axes = re.findall(r'\d+', contracted[1]) if contracted else []
        return Product(
            PRODUCT, precision, 2.0 * result * math.prod(left[int(axis)] for axis in axes)
        )
    if name == 'convolution' or name.startswith(CONV):
        labels = _LABELS.search(line.rest)
        if labels is None:
            return None
        channels = right[labels[1].index('o')]
        return Product(CONVOLUTION, precision, 2.0 * result * math.prod(right) / channels)
    return None


def precision_of(dtype: str, attributes: str) -> str:
    """The precision of a multiplication, by its operands' dtype and its attributes."""
    if dtype in ('bf16', 'f16'):
        return BFLOAT16 if dtype == 'bf16' else FLOAT16
    if dtype != 'f32':
        return OTHER
    found = _PRECISION.search(attributes)
    named = (found[1] or found[2]).lower() if found else 'default'
    return {'highest': FLOAT32, 'high': THREE_BFLOAT16}.get(named, TF32)


def operand_arrays(
    program: HloProgram, computation: str, line: Instruction
) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, dimensions) of the operands of a line, in order."""
    shapes = program.shapes(computation)
    return [array for name in line.operands for array in shapes.get(name, ())]


def _attention_flops(line: Instruction, backward: bool) -> float:
    """Two products of (queries, keys, width) per head, from the layouts (B, N, heads, width)."""
    layouts = _LAYOUTS.search(line.rest)
    arrays = [dims for _, dims in arrays_of(layouts[1] if layouts else '') if len(dims) == 4]
    if len(arrays) < 2:
        return 0.0
    (batch, queries, heads, width), (_, keys, *_) = arrays[:2]
    return 4.0 * batch * heads * queries * keys * width * (BACKWARD if backward else 1.0)
