"""Memory and time of a training step on TPUs or GPUs, by formulas and by their compiler."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from infinity_jax.config import ModelConfigs, required
from infinity_jax.tools.plan.abstract_step import abstract_step
from infinity_jax.tools.plan.kernel_flops import training_flops
from infinity_jax.tools.plan.program_cost import ProgramCost, compile_program
from infinity_jax.tools.plan.program_time import ProgramTime
from infinity_jax.tools.plan.topology import Devices, lack_of_bfloat16
from infinity_jax.training import flops
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.training.transformer.parts import check_card

SHALLOW = (2, 3)  # layers of two unrolled programs, whose difference is the time of a layer


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Figures that follow from configurations alone.

    Attributes:
      parameters: of the trained networks.
      state_bytes: parameters, their average and optimizer state, per chip.
      model_flops: per step on all chips, see `flops.training_step`.
      frozen_flops: per step, of the networks that are not trained.
      images: per step.
    """

    parameters: int
    state_bytes: int
    model_flops: float
    frozen_flops: float
    images: int


class BatchMemory(NamedTuple):
    """Memory of a training step with a number of images at once, both per chip."""

    images: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """A training step on a slice.

    Attributes:
      cost: of the whole program; None without a compiler.
      unrolled: times of the programs with `SHALLOW` layers; None if they were not compiled.
      largest: images at once per chip that fit, from a line through two compiled programs; None
        if that was not asked for.
      measured: memory of these two programs.
    """

    analysis: Analysis
    cost: ProgramCost | None = None
    unrolled: tuple[ProgramTime, ProgramTime] | None = None
    largest: int | None = None
    measured: tuple[BatchMemory, ...] = ()


def analyse(config: T2IConfig, configs: ModelConfigs, step: Any, source: str) -> Analysis:
    """Counts without a compiler."""
    state = step.arguments[0]
    length = config.transformer.text_length
    text = configs.text if config.text.train else None
    common = (required(configs.schedule, 'schedule'), config.batch_size, length)
    model = flops.training_step(
        config.transformer, *common, trained_text=text, frozen_kernels=bool(config.lora.rank)
    )
    frozen = flops.Flops()
    if source == 'images':
        tokenizer = required(configs.tokenizer, 'tokenizer')
        encoder = required(configs.text, 'text encoder')
        frozen = flops.frozen_forward(config.transformer, tokenizer, encoder, *common)
    return Analysis(*sizes_of(state), model.total, frozen.total, config.batch_size)


def sizes_of(state: Any) -> tuple[int, int]:
    """(parameters, bytes per chip) of an abstract training state."""
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    shards = (
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    return parameters, sum(shards)


def extrapolate(shallow: tuple[ProgramTime, ProgramTime], depth: int) -> ProgramTime:
    """T = T₂ + (depth − 2)(T₃ − T₂), by part; below zero becomes zero."""
    two, three = shallow
    whole = two + (three - two) * (depth - SHALLOW[0])
    return ProgramTime(*(max(part, 0.0) for part in dataclasses.astuple(whole)))


def mfu(analysis: Analysis, seconds: float, topology: Devices) -> float:
    """Model FLOP over the bfloat16 FLOP that all chips can do in that time."""
    return analysis.model_flops / (seconds * topology.num_chips * topology.peak.bf16_flops)


def largest_batch(measured: tuple[BatchMemory, ...], limit: int) -> int:
    """Images at once per chip whose memory, on the line through two programs, is in the limit."""
    (few, small), (many, large) = measured
    slope = (large - small) / (many - few)
    if slope <= 0:
        return many
    return max(math.floor(few + (limit - small) / slope), 0)


def images_at_once(config: T2IConfig, mesh: Mesh | AbstractMesh) -> int:
    """Images that a chip processes at the same time, with all others of its `tensor` axis."""
    return config.batch_size // (batch_shares(mesh) * config.accumulate_steps)


def batch_shares(mesh: Mesh | AbstractMesh) -> int:
    """Shares of a batch: chips along `tensor` and `sequence` work on the same images."""
    return mesh.shape['data'] * mesh.shape['fsdp']


class Planner:
    """Compiles variants of the training step of a run for a slice.

    Args:
      config: the run.
      configs: of its parts.
      topology: the slice.
      mesh: of its devices, or of stand-ins if nothing is compiled.
      source: 'images' or 'features', see `abstract_step`.

    Raises:
      UserError: products in bfloat16 on a card without it.
    """

    def __init__(
        self, config: T2IConfig, configs: ModelConfigs, topology: Devices, mesh: Mesh, source: str
    ):
        self.config, self.configs, self.source = config, configs, source
        self.topology, self.mesh = topology, mesh
        check_card(config, lack_of_bfloat16(topology))

    def analysis(self) -> Analysis:
        """The figures that need no compiler."""
        step = abstract_step(self.config, self.configs, self.mesh, self.source)
        return analyse(self.config, self.configs, step, self.source)

    def cost(self, *, depth: int = 0, at_once: int = 0, unrolled: bool = False) -> ProgramCost:
        """The cost of the step; `depth` and `at_once` replace layers and images per chip."""
        config, configs = self.config, self.configs
        if depth:
            transformer = dataclasses.replace(config.transformer, depth=depth)
            config = dataclasses.replace(config, transformer=transformer)
            configs = dataclasses.replace(configs, transformer=transformer)
        if at_once:
            batch = at_once * batch_shares(self.mesh) * config.accumulate_steps
            config = dataclasses.replace(config, batch_size=batch)
        step = abstract_step(config, configs, self.mesh, self.source, unrolled)
        return compile_program(
            *step, self.topology, coordinates_of(self.mesh),
            training_flops(required(configs.schedule, 'schedule')),
        )  # fmt: skip

    def training(self, *, layers: bool = True, batch: bool = True, progress=print) -> TrainingPlan:
        """The whole plan.

        Args:
          layers: whether to compile the unrolled programs as well.
          batch: whether to estimate the largest batch, by another program.
          progress: called with a line before each compilation.
        """
        plan = TrainingPlan(self.analysis())
        images = images_at_once(self.config, self.mesh)
        progress('compiling the training step')
        cost = self.cost()
        plan = dataclasses.replace(plan, cost=cost)
        if batch:
            other = images // 2 if images > 1 else 2
            progress(f'compiling it with {other} instead of {images} images per chip')
            second = self.cost(at_once=other)
            measured = tuple(
                sorted([BatchMemory(images, cost.needed), BatchMemory(other, second.needed)])
            )
            largest = largest_batch(measured, self.topology.usable_bytes)
            plan = dataclasses.replace(plan, measured=measured, largest=largest)
        if layers and cost.memory is not None:
            times = []
            for depth in SHALLOW:
                progress(f'compiling {depth} layers without a loop')
                times.append(self.cost(depth=depth, unrolled=True).time)
            first, second_time = times
            if first is not None and second_time is not None:
                plan = dataclasses.replace(plan, unrolled=(first, second_time))
        return plan


def coordinates_of(mesh: Mesh) -> list[tuple[int, ...]]:
    """The place of each partition's device: a TPU chip's in the torus, a card's host."""
    return [
        tuple(getattr(device, 'coords', (getattr(device, 'process_index', 0),)))
        for device in mesh.devices.flat
    ]
