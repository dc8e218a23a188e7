"""Memory and time of generating images on TPUs or GPUs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from infinity_jax.config import ModelConfigs, required
from infinity_jax.inference.generate import NetworkParams
from infinity_jax.inference.sampling import GenerationSettings
from infinity_jax.inference.warmup import BatchShape, Call, calls_of
from infinity_jax.sharding import batch_sharding, in_mesh, replicated
from infinity_jax.tools.plan.kernel_flops import all_visible, splash_flops
from infinity_jax.tools.plan.program_cost import AbstractProgram, ProgramCost, compile_program
from infinity_jax.tools.plan.report import cost_json, cost_lines, method_of, time_line
from infinity_jax.tools.plan.topology import Devices, can_compile
from infinity_jax.tools.plan.training import coordinates_of
from infinity_jax.training import flops, loop
from infinity_jax.weights.placement import decoder_params, shardings_on

TEXT_ENCODER, GENERATION = 'text encoder', 'generation'


@dataclasses.dataclass(frozen=True)
class PlannedProgram:
    """A program of generation.

    Attributes:
      flops: of all chips.
      cost: of the compiled program; None without a compiler.
    """

    flops: float
    cost: ProgramCost | None = None


@dataclasses.dataclass(frozen=True)
class GenerationPlan:
    """The generation of a batch of images.

    Attributes:
      images: on all chips.
      programs: by name, `TEXT_ENCODER` and `GENERATION`.
    """

    images: int
    programs: dict[str, PlannedProgram]


def plan_generation(
    configs: ModelConfigs, topology: Devices, mesh: Mesh, num: int, progress: Callable[[str], None]
) -> GenerationPlan:
    """Compiles the programs of guided generation.

    Args:
      configs: of the model.
      topology: the slice.
      mesh: of its devices, or of stand-ins if nothing is compiled.
      num: images per chip.
      progress: called with a line before each compilation.
    """
    images = num * topology.num_chips
    transformer = required(configs.transformer, 'transformer')
    tokenizer = required(configs.tokenizer, 'tokenizer')
    text = required(configs.text, 'text encoder')
    schedule = required(configs.schedule, 'schedule')
    length = transformer.text_length
    counted = flops.generation(transformer, tokenizer, text, schedule, images, length)
    programs = {
        TEXT_ENCODER: PlannedProgram(counted.text_encoder),
        GENERATION: PlannedProgram(counted.transformer + counted.tokenizer),
    }
    if can_compile(topology):
        abstract = generation_programs(configs, mesh, images)
        for name, program in zip(programs, abstract, strict=True):
            progress(f'compiling: {name}')
            cost = compile_program(
                *program, topology, coordinates_of(mesh), splash_flops(all_visible)
            )
            programs[name] = dataclasses.replace(programs[name], cost=cost)
    return GenerationPlan(images, programs)


def share_of_peak(program: PlannedProgram, seconds: float, topology: Devices) -> float:
    """FLOP of a program over the FLOP that all chips can do in that time."""
    return program.flops / (seconds * topology.num_chips * topology.peak.bf16_flops)


def generation_lines(plan: GenerationPlan, topology: Devices) -> list[str]:
    """The lines of the report."""
    peak = topology.num_chips * topology.peak.bf16_flops
    lines = [f'{topology.name}: {plan.images} images at once, with guidance']
    for name, program in plan.programs.items():
        work, cost = program.flops, program.cost
        lines.append(f'{name}: {work / 1e12:,.1f} TFLOP, {work / peak:.3f} s at the peak')
        if cost is not None:
            lines += cost_lines(cost, topology)
            if cost.time is not None:
                share = share_of_peak(program, cost.time.total, topology)
                lines.append(time_line('all loops counted', cost.time))
                lines.append(f'    share of peak   {share:.1%}')
    return [*lines, _method(plan, topology)]


def generation_json(plan: GenerationPlan, topology: Devices) -> dict[str, Any]:
    """The report as plain data; bytes and seconds."""
    programs = {}
    for name, program in plan.programs.items():
        programs[name] = {'flops': program.flops}
        cost = program.cost
        if cost is not None:
            programs[name] |= cost_json(cost, topology)
            if cost.time is not None:
                seconds = cost.time.total
                programs[name]['seconds'] = seconds
                programs[name]['share_of_peak'] = share_of_peak(program, seconds, topology)
    return {
        'topology': topology.name,
        'images': plan.images,
        'programs': programs,
        'method': _method(plan, topology),
    }


def _method(plan: GenerationPlan, topology: Devices) -> str:
    compiled = plan.programs[GENERATION].cost is not None
    return method_of(topology, compiled)


def generation_programs(configs: ModelConfigs, mesh: Mesh, batch: int) -> list[AbstractProgram]:
    """The text encoder and the generation of a batch, guided, texts padded to the full length.

    Args:
      configs: of the model.
      mesh: images are split over data and fsdp, weights as in training.
      batch: images on all devices.
    """
    platform = mesh.devices.flat[0].platform
    transformer = required(configs.transformer, 'transformer')
    tokenizer = required(configs.tokenizer, 'tokenizer')
    text = required(configs.text, 'text encoder')
    settings = GenerationSettings(required(configs.schedule, 'schedule'))
    shape = BatchShape(batch, num=1, text_length=transformer.text_length)
    encoding, *generation = calls_of(configs, settings, shape, platform=platform)
    rows = batch_sharding(mesh)

    def abstract(call: Call, shardings: dict[str, Any]) -> AbstractProgram:
        names = tuple(call.shapes)
        lower = lambda *args: call.function.lower(
            **call.static, **dict(zip(names, args, strict=True))
        )
        placed = tuple(loop.with_shardings(call.shapes[name], shardings[name]) for name in names)
        return AbstractProgram(in_mesh(mesh, lower), placed)

    programs = [
        abstract(
            encoding,
            {'params': shardings_on(text, mesh), 'ids_BT': rows, 'lengths_B': rows},
        )
    ]
    for call in generation:
        inputs = jax.tree.map(lambda _: rows, call.shapes['inputs'])
        numbers = jax.tree.map(lambda _: replicated(mesh), inputs.numbers)
        params = NetworkParams(
            shardings_on(transformer, mesh),
            decoder_params(shardings_on(tokenizer, mesh)),
        )
        programs.append(
            abstract(call, {'params': params, 'inputs': inputs._replace(numbers=numbers)})
        )
    return programs
