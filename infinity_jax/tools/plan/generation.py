"""What drawing images would take on a TPU slice."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from infinity_jax.config import ModelConfigs
from infinity_jax.tools.plan.abstract_generation import generation_calls
from infinity_jax.tools.plan.program_cost import ProgramCost, compile_program
from infinity_jax.tools.plan.report import METHOD, NO_COMPILER, cost_json, cost_lines, time_line
from infinity_jax.tools.plan.splash_flops import all_visible, splash_flops
from infinity_jax.tools.plan.topology import Topology, can_compile
from infinity_jax.tools.plan.training import coordinates_of
from infinity_jax.training import flops


@dataclasses.dataclass(frozen=True)
class DrawingPlan:
    """Drawing one batch.

    Attributes:
      images: on all chips.
      flops: by program, of all chips.
      costs: by program; empty without libtpu.
    """

    images: int
    flops: dict[str, float]
    costs: dict[str, ProgramCost]


def plan_drawing(
    configs: ModelConfigs, topology: Topology, mesh: Mesh, num: int, say: Callable[[str], None]
) -> DrawingPlan:
    """Compiles text encoder and drawing for `num` images a chip, with guidance."""
    images = num * topology.num_chips
    parts = (configs.transformer, configs.tokenizer, configs.text)
    length = configs.transformer.text_length
    counted = flops.generation(*parts, configs.schedule, images, length)
    work = {
        'text encoder': counted.text_encoder,
        'drawing': counted.transformer + counted.tokenizer,
    }
    costs = {}
    if can_compile():
        for name, call in generation_calls(configs, mesh, images).items():
            say(f'compiling: {name}')
            costs[name] = compile_program(
                *call, topology, coordinates_of(mesh), splash_flops(all_visible)
            )
    return DrawingPlan(images, work, costs)


def share_of_peak(plan: DrawingPlan, name: str, topology: Topology) -> float:
    """FLOP of a program over what the chips could do in its estimated time."""
    possible = plan.costs[name].time.total * topology.num_chips * topology.peak.bf16_flops
    return plan.flops[name] / possible


def generation_lines(plan: DrawingPlan, topology: Topology) -> list[str]:
    """The report, a line each."""
    peak = topology.num_chips * topology.peak.bf16_flops
    lines = [f'{topology.name}: {plan.images} images at once, with guidance']
    for name, work in plan.flops.items():
        lines.append(f'{name}: {work / 1e12:,.1f} TFLOP, {work / peak:.3f} s at the peak')
        if name in plan.costs:
            cost = plan.costs[name]
            lines += cost_lines(cost, topology)
            if cost.time is not None:
                lines.append(time_line('all loops counted', cost.time))
                lines.append(f'    share of peak   {share_of_peak(plan, name, topology):.1%}')
    return [*lines, METHOD if plan.costs else NO_COMPILER]


def generation_json(plan: DrawingPlan, topology: Topology) -> dict[str, Any]:
    """The same as plain data; bytes and seconds."""
    programs = {}
    for name, work in plan.flops.items():
        programs[name] = {'flops': work}
        if name in plan.costs:
            cost = plan.costs[name]
            programs[name] |= cost_json(cost)
            if cost.time is not None:
                programs[name]['seconds'] = cost.time.total
                programs[name]['share_of_peak'] = share_of_peak(plan, name, topology)
    return {
        'topology': topology.name,
        'images': plan.images,
        'programs': programs,
        'method': METHOD if plan.costs else NO_COMPILER,
    }
