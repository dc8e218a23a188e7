"""What training a tokenizer would take on a TPU slice."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from infinity_jax.tools.plan.abstract_tokenizer import abstract_tokenizer_step
from infinity_jax.tools.plan.program_cost import compile_program
from infinity_jax.tools.plan.topology import Topology, can_compile
from infinity_jax.tools.plan.training import Analysis, TrainingPlan, coordinates_of, sizes_of
from infinity_jax.training import flops
from infinity_jax.training.optimizer import TrainState
from infinity_jax.training.tokenizer.config import TokenizerRunConfig


def plan_tokenizer(
    config: TokenizerRunConfig, topology: Topology, mesh: Mesh, say: Callable[[str], None]
) -> TrainingPlan:
    """Compiles the step. Its model FLOP are the autoencoder's; LPIPS and discriminator, whose
    arithmetic `flops` does not count, are in the program and its time."""
    step = abstract_tokenizer_step(config, mesh)
    analysis = _analyse(config, step.arguments[0])
    if not can_compile():
        return TrainingPlan(analysis)
    say('compiling the training step')
    cost = compile_program(
        step.lower, step.arguments, topology, coordinates_of(mesh), lambda name, operands: 0.0
    )
    return TrainingPlan(analysis, cost)


def _analyse(config: TokenizerRunConfig, state: TrainState) -> Analysis:
    """Counts without a compiler. A frozen encoder has optimizer state all the same."""
    sizes = (config.tokenizer, *[config.data.image_size] * 2, config.batch_size)
    trained = flops.tokenizer_training_step(*sizes, frozen_encoder=config.freeze_encoder)
    parameters, state_bytes = sizes_of(state)
    frozen = 0.0
    if config.freeze_encoder:
        frozen = flops.tokenizer_encode(*sizes).total
        parameters -= sum(leaf.size for leaf in jax.tree.leaves(state.params['encoder']))
    return Analysis(parameters, state_bytes, trained, frozen, config.batch_size)
