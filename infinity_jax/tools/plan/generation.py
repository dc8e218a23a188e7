"""Memory and time of generating images on TPUs or GPUs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from infinity_jax.config import ModelConfigs, QuantizationConfig, required
from infinity_jax.errors import UserError
from infinity_jax.inference.generate import NetworkParams
from infinity_jax.inference.sampling import GenerationSettings
from infinity_jax.inference.warmup import BatchShape, Call, calls_of
from infinity_jax.sharding import batch_sharding, in_mesh, replicated
from infinity_jax.tools.plan.kernel_flops import all_visible, splash_flops
from infinity_jax.tools.plan.program_cost import AbstractProgram, ProgramCost, compile_program
from infinity_jax.tools.plan.report import cost_json, cost_lines, method_of, time_line
from infinity_jax.tools.plan.topology import Devices, can_compile, lack_of_bfloat16
from infinity_jax.tools.plan.training import coordinates_of
from infinity_jax.training import flops, loop
from infinity_jax.transformer.int8 import int8_shardings
from infinity_jax.weights.placement import decoder_params, on_card, shardings_on

TEXT_ENCODER, GENERATION = 'text encoder', 'generation'
GIB = 2**30


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
      text_on_host: whether the text encoder's weights are on the device only while it encodes.
    """

    images: int
    programs: dict[str, PlannedProgram]
    text_on_host: bool = False

    @property
    def needed(self) -> int | None:
        """Bytes per chip at the peak of both programs; None if one was not compiled, or cannot fit.

        The weights of transformer and decoder are there while the text encoder runs.
        """
        costs = [program.cost for program in self.programs.values()]
        text, generation = (None if cost is None else cost.memory for cost in costs)
        if text is None or generation is None:
            return None
        waiting = 0 if self.text_on_host else text.arguments
        return max(text.total + generation.arguments, generation.total + waiting)


def plan_generation(
    configs: ModelConfigs,
    topology: Devices,
    mesh: Mesh,
    num: int,
    progress: Callable[[str], None],
    *,
    quantization: QuantizationConfig = QuantizationConfig(),
    text_on_host: bool = False,
) -> GenerationPlan:
    """Compiles the programs of guided generation, in float32 on a card without bfloat16.

    Args:
      configs: of the model.
      topology: the slice.
      mesh: of its devices, or of stand-ins if nothing is compiled.
      num: images per chip.
      progress: called with a line before each compilation.
      quantization: the formats of weights and cache, and the decoder's precision.
      text_on_host: see `GenerationPlan`.

    Raises:
      UserError: 8-bit weights, or a text encoder on the host, with several devices.
    """
    if topology.num_chips > 1 and (text_on_host or quantization.weights == 'int8'):
        raise UserError(
            f'--topology {topology.name} has {topology.num_chips} chips; --weights int8 and '
            '--text-encoder host are for one'
        )
    images = num * topology.num_chips
    configs = on_card(configs, lack_of_bfloat16(topology))
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
        abstract = generation_programs(configs, mesh, images, quantization)
        for name, program in zip(programs, abstract, strict=True):
            progress(f'compiling: {name}')
            cost = compile_program(
                *program, topology, coordinates_of(mesh), splash_flops(all_visible)
            )
            programs[name] = dataclasses.replace(programs[name], cost=cost)
    return GenerationPlan(images, programs, text_on_host)


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
    if plan.needed is not None:
        limit = topology.usable_bytes
        place = 'on the host while images are generated' if plan.text_on_host else 'on the device'
        lines.append(
            f'both programs       {plan.needed / GIB:.2f} GiB per chip of {limit / GIB:.2f}'
            f'{"" if plan.needed <= limit else ", too much"}, the text encoder {place}'
        )
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
        'text_on_host': plan.text_on_host,
        'needed': plan.needed,
        'method': _method(plan, topology),
    }


def _method(plan: GenerationPlan, topology: Devices) -> str:
    compiled = plan.programs[GENERATION].cost is not None
    return method_of(topology, compiled)


def generation_programs(
    configs: ModelConfigs,
    mesh: Mesh,
    batch: int,
    quantization: QuantizationConfig = QuantizationConfig(),
) -> list[AbstractProgram]:
    """The text encoder and the generation of a batch, guided, texts padded to the full length.

    Args:
      configs: of the model.
      mesh: images are split over data and fsdp, weights as in training.
      batch: images on all devices.
      quantization: the formats of weights and cache, and the decoder's precision.
    """
    platform = mesh.devices.flat[0].platform
    transformer = required(configs.transformer, 'transformer')
    tokenizer = required(configs.tokenizer, 'tokenizer')
    text = required(configs.text, 'text encoder')
    settings = GenerationSettings(
        required(configs.schedule, 'schedule'), int8_cache=quantization.cache == 'int8'
    )
    shape = BatchShape(batch, num=1, text_length=transformer.text_length)
    encoding, *generation = calls_of(configs, settings, shape, quantization, platform)
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
    kernels = shardings_on(transformer, mesh)
    if quantization.weights == 'int8':
        kernels = int8_shardings(kernels)
    for call in generation:
        inputs = jax.tree.map(lambda _: rows, call.shapes['inputs'])
        numbers = jax.tree.map(lambda _: replicated(mesh), inputs.numbers)
        params = NetworkParams(kernels, decoder_params(shardings_on(tokenizer, mesh)))
        programs.append(
            abstract(call, {'params': params, 'inputs': inputs._replace(numbers=numbers)})
        )
    return programs
