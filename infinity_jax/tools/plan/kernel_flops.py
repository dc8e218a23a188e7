"""FLOP of Pallas kernels, of which a compiled program states none: those of splash attention."""

import functools
import math
import re
from collections.abc import Callable

import numpy as np

from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.plan.hlo_text import Instruction
from infinity_jax.transformer.splash import block_of, gradient_block

KERNEL = 'custom_call_target="tpu_custom_call"'  # marks a Pallas kernel in HLO text
Arrays = list[tuple[str, tuple[int, ...]]]
KernelFlops = Callable[[str, Arrays], float]  # (name, dtypes and shapes of the operands) -> FLOP

# Matrix products of (queries, keys, width) in each kernel, recomputation included, and in
# the kernel for all gradients.
PRODUCTS = {'_fwd': 2, '_dq': 3, '_dkv': 4}
ONE_GRADIENT_KERNEL = 5


def kernel_name(instruction: Instruction) -> str:
    """The name that a Pallas kernel was given; the compiler adds a number."""
    return re.sub(r'\.\d+$', '', instruction.name)


def splash_flops(visible: Callable[[int, int, int], float]) -> KernelFlops:
    """Counts the FLOP of splash attention's kernels; other kernels count zero.

    Args:
      visible: (queries, keys, columns per block) of self-attention without padding -> share of the
        blocks that the kernel does not skip.
    """

    def count(name: str, operands: Arrays) -> float:
        products = next((n for part, n in PRODUCTS.items() if part in name), 0)
        arrays = [dims for dtype, dims in operands if len(dims) > 2 and dtype != 's8']
        if not name.startswith('splash') or not products or len(arrays) < 2:
            return 0.0
        (*rows, queries, width), (*_, keys, _) = arrays[:2]
        columns = block_of(queries, keys)
        if '_dkv' in name and (wide := gradient_block(keys, columns)):
            products, columns = ONE_GRADIENT_KERNEL, wide
        share = 1.0 if 'segmented' in name else visible(queries, keys, columns)
        return products * 2.0 * math.prod(rows) * queries * keys * width * share

    return count


def all_visible(queries: int, keys: int, columns: int) -> float:
    """The share in generation, where a scale attends to all cached keys."""
    return 1.0


def training_flops(schedule: ScaleSchedule) -> KernelFlops:
    """FLOP of splash attention in the training step on this schedule."""
    ends = np.repeat([end for _, end in schedule.spans], [e - s for s, e in schedule.spans])

    @functools.cache
    def visible(queries: int, keys: int, columns: int) -> float:
        if queries != keys or queries < ends.size:
            return 1.0
        filled = np.pad(ends, (0, queries - ends.size), constant_values=ends.size)
        rows = filled.reshape(-1, block_of(ends.size, ends.size)).max(1)
        return float(np.ceil(rows / columns).mean()) / (keys // columns)

    return splash_flops(visible)
