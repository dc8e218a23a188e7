"""Arithmetic of splash attention's kernels, what they compute again included."""

import functools
import math
from collections.abc import Callable

import numpy as np

from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.plan.program_time import Arrays, KernelFlops
from infinity_jax.transformer.splash import block_of, gradient_block

# Matrix products of (queries, keys, width) in each kernel, and in the one for all gradients.
PRODUCTS = {'_fwd': 2, '_dq': 3, '_dkv': 4}
ONE_GRADIENT_KERNEL = 5


def splash_flops(visible: Callable[[int, int, int], float]) -> KernelFlops:
    """Counts the FLOP of splash attention's kernels; others count none.

    Args:
      visible: (queries, keys, columns of a block) of self-attention without padding -> share of
        its blocks that the kernel does not skip.
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
    """Of generation: a scale sees all keys that there are."""
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
