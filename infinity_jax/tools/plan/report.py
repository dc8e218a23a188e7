"""A plan as text and as JSON."""

import dataclasses
from typing import Any

from infinity_jax.tools.plan.gpu_topology import GpuTopology, install_line
from infinity_jax.tools.plan.program_cost import ProgramCost
from infinity_jax.tools.plan.program_time import ProgramTime
from infinity_jax.tools.plan.topology import Devices
from infinity_jax.tools.plan.training import TrainingPlan, extrapolate, mfu

GIB = 2**30
NO_COMPILER = (
    '{} is not installed, so nothing was compiled: these are analytic numbers only; install it '
    'with {}'
)
GPU_METHOD = (
    'The time is an estimate, a roofline of the compiled text: each kernel takes the longer of its '
    'FLOP at the peak of their precision and its bytes at the bandwidth of the memory, and 2 '
    'microseconds to start; collectives at the bandwidth of the links, latency left out. Kernels '
    'of a real card reach a part of these peaks.'
)
METHOD = (
    "The time is an estimate: the compiler's own cycles of each operation (estimated_cycles in the "
    'compiled text) at the clock that gives the published peak; Pallas kernels, for which it has '
    'none, at the peak; operations without cycles at the bandwidth of the memory; collectives at '
    'the bandwidth of the links, whole rings, latency left out.'
)


def training_lines(plan: TrainingPlan, topology: Devices, depth: int = 0) -> list[str]:
    """The lines of the report of a training step; `depth` is the transformer's."""
    analysis = plan.analysis
    peak = topology.num_chips * topology.peak.bf16_flops
    lines = [
        f'{topology.name}: {topology.num_chips} chips of {topology.peak.hbm_bytes / GIB:.4g} GiB '
        f'and {topology.peak.bf16_flops / 1e12:.0f} TFLOP/s (bfloat16)',
        f'trained parameters  {analysis.parameters / 1e9:.3f} B; with average and optimizer state '
        f'{analysis.state_bytes / GIB:.2f} GiB per chip',
        f'arithmetic per step {analysis.model_flops / 1e12:,.1f} TFLOP for {analysis.images} '
        f'images, frozen networks {analysis.frozen_flops / 1e12:,.1f} more',
        f'at the peak         {analysis.model_flops / peak:.3g} s per step without the frozen ones',
    ]
    if plan.cost is None:
        return [*lines, method_of(topology, False)]
    lines += cost_lines(plan.cost, topology)
    if plan.largest is not None:
        points = ', '.join(f'{n}: {size / GIB:.2f} GiB' for n, size in plan.measured)
        lines.append(
            f'largest batch       {plan.largest} images at once per chip, on the line through '
            f'two compiled programs ({points})'
        )
    for name, time in estimates(plan, depth).items():
        lines.append(time_line(name, time))
        lines.append(f'    estimated MFU   {mfu(analysis, time.total, topology):.1%}')
    return [*lines, method_of(topology, True)]


def estimates(plan: TrainingPlan, depth: int) -> dict[str, ProgramTime]:
    """Estimated times of a step by the name of their method."""
    times = {}
    if plan.unrolled is not None:
        times['T2 + (depth - 2)(T3 - T2)'] = extrapolate(plan.unrolled, depth)
    if plan.cost is not None and plan.cost.time is not None:
        times['all loops counted'] = plan.cost.time
    return times


def cost_lines(cost: ProgramCost, topology: Devices) -> list[str]:
    """Memory, collectives and kernels of a compiled program."""
    limit = topology.usable_bytes
    if cost.memory is None:
        return [
            f'memory              {cost.needed / GIB:.2f} GiB per chip: does not fit into '
            f'{limit / GIB:.2f} GiB'
        ]
    memory = cost.memory
    fits = '' if memory.total <= limit else ', too much'
    lines = [
        f'memory              {memory.total / GIB:.2f} GiB per chip of {limit / GIB:.2f}{fits}: '
        f'arguments {memory.arguments / GIB:.2f}, outputs {memory.outputs / GIB:.2f} less '
        f'{memory.aliased / GIB:.2f} in donated buffers, temporaries '
        f'{memory.temporaries / GIB:.2f}, code {memory.code / GIB:.2f}',
        f'compiled in         {cost.compile_seconds:.0f} s',
    ]
    for kind, total in cost.collectives.items():
        lines.append(
            f'{kind:<19} {total.count} per step, {total.bytes / GIB:.2f} GiB of buffers per chip'
        )
    for name, count in cost.kernels.items():
        lines.append(f'kernel              {name}: {count} per step')
    for name, count in cost.products.items():
        lines.append(f'multiplications     {name}: {count} per step')
    if cost.unknown_loops:
        loops = ', '.join(cost.unknown_loops)
        lines.append(f'loops counted once  {loops}: the text lacks their number of iterations')
    return lines


def method_of(topology: Devices, compiled: bool) -> str:
    """How the figures were made, or what to install for more of them."""
    on_gpu = isinstance(topology, GpuTopology)
    if compiled:
        return GPU_METHOD if on_gpu else METHOD
    if on_gpu:
        return NO_COMPILER.format("jax's CUDA plugin", install_line())
    return NO_COMPILER.format('libtpu', "pip install 'jax[tpu]'")


def time_line(name: str, time: ProgramTime) -> str:
    """The estimated time of a program and its parts."""
    return (
        f'estimated time      {time.total:.4g} s, {name}: operations {time.estimated:.3f}, kernels '
        f'{time.kernels:.3f}, moves {time.moved:.3f}, collectives waited for {time.exposed:.3f} '
        f'(hidden {time.hidden:.3f})'
    )


def training_json(plan: TrainingPlan, topology: Devices, depth: int = 0) -> dict[str, Any]:
    """The report as plain data; bytes and seconds."""
    times = {
        name: {
            **dataclasses.asdict(time),
            'total': time.total,
            'mfu': mfu(plan.analysis, time.total, topology),
        }
        for name, time in estimates(plan, depth).items()
    }
    return {
        'topology': topology.name,
        **dataclasses.asdict(plan.analysis),
        'program': None if plan.cost is None else cost_json(plan.cost, topology),
        'largest_batch': plan.largest,
        'measured_batches': plan.measured,
        'estimates': times,
        'method': method_of(topology, plan.cost is not None),
    }


def cost_json(cost: ProgramCost, topology: Devices) -> dict[str, Any]:
    """A compiled program as plain data."""
    fits = cost.memory is not None and cost.memory.total <= topology.usable_bytes
    return {**dataclasses.asdict(cost), 'fits': fits}
