"""Memory and time of training a tokenizer on a TPU slice."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from infinity_jax.data.batch import Batch
from infinity_jax.sharding import batch_sharding, in_mesh, replicated, shardings_of
from infinity_jax.tools.plan.program_cost import AbstractProgram, compile_program
from infinity_jax.tools.plan.topology import Devices, can_compile
from infinity_jax.tools.plan.training import Analysis, TrainingPlan, coordinates_of, sizes_of
from infinity_jax.training import flops, loop
from infinity_jax.training.accumulate import check_parts
from infinity_jax.training.optimizer import TrainState
from infinity_jax.training.tokenizer.config import TokenizerRunConfig
from infinity_jax.training.tokenizer.lpips import BLOCKS, convolution_shapes
from infinity_jax.training.tokenizer.task import init_state, jit_step, make_model


def plan_tokenizer(
    config: TokenizerRunConfig, topology: Devices, mesh: Mesh, progress: Callable[[str], None]
) -> TrainingPlan:
    """Compiles the training step.

    The model FLOP are the autoencoder's alone. LPIPS and the discriminator are in the program and
    its time; `flops` does not count their arithmetic.

    Args:
      config: the run.
      topology: the slice.
      mesh: of its devices, or of stand-ins if nothing is compiled.
      progress: called with a line before a compilation.
    """
    step = abstract_tokenizer_step(config, mesh)
    analysis = _analyse(config, step.arguments[0])
    if not can_compile(topology):
        return TrainingPlan(analysis)
    progress('compiling the training step')
    cost = compile_program(*step, topology, coordinates_of(mesh), lambda name, operands: 0.0)
    return TrainingPlan(analysis, cost)


def _analyse(config: TokenizerRunConfig, state: TrainState) -> Analysis:
    """Counts without a compiler. A frozen encoder has optimizer state as well."""
    edge = config.data.image_size
    sizes = (config.tokenizer, edge, edge, config.batch_size)
    trained = flops.tokenizer_training_step(*sizes, frozen_encoder=config.freeze_encoder)
    parameters, state_bytes = sizes_of(state)
    frozen = 0.0
    if config.freeze_encoder:
        frozen = flops.tokenizer_encode(*sizes).total
        parameters -= sum(leaf.size for leaf in jax.tree.leaves(state.params['encoder']))
    return Analysis(parameters, state_bytes, trained, frozen, config.batch_size)


def abstract_tokenizer_step(config: TokenizerRunConfig, mesh: Mesh) -> AbstractProgram:
    """The training step that `make_task` would jit on this mesh, on square images.

    LPIPS is part of the step if its loss has a weight, even if no files of its weights are named.

    Raises:
      UserError: the batch does not split over the mesh.
    """
    check_parts(config.batch_size, config.accumulate_steps, mesh)
    model = make_model(config)
    boxed = jax.eval_shape(lambda key: init_state(key, model, config), jax.random.key(0))
    shardings = shardings_of(boxed, mesh)
    size = config.data.image_size
    pixels = (config.batch_size, size, size, 3)
    arguments = (
        loop.with_shardings(nn.unbox(boxed), shardings),
        _lpips_params(mesh) if config.losses.perceptual else None,
        Batch(jax.ShapeDtypeStruct(pixels, np.uint8, sharding=batch_sharding(mesh))),
    )
    step = jit_step(model, config, shardings, mesh)
    return AbstractProgram(in_mesh(mesh, step.lower), arguments)


def _lpips_params(mesh: Mesh) -> dict[str, Any]:
    """The weights of LPIPS, replicated on every device as in `make_task`."""
    layers = {
        name: {'kernel': shape, 'bias': shape[-1:]} for name, shape in convolution_shapes().items()
    }
    shapes = {'vgg': layers, 'heads': tuple((block[-1],) for block in BLOCKS)}
    is_shape = lambda x: isinstance(x, tuple) and isinstance(x[0], int)
    place = lambda x: jax.ShapeDtypeStruct(x, np.float32, sharding=replicated(mesh))
    return jax.tree.map(place, shapes, is_leaf=is_shape)
