"""A tokenizer's training step from its configuration alone."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from infinity_jax.data.batch import Batch
from infinity_jax.sharding import batch_sharding, in_mesh, replicated, shardings_of
from infinity_jax.tools.plan.abstract_step import AbstractStep
from infinity_jax.training import loop
from infinity_jax.training.accumulate import check_parts
from infinity_jax.training.tokenizer.config import TokenizerRunConfig
from infinity_jax.training.tokenizer.lpips import BLOCKS, convolution_shapes
from infinity_jax.training.tokenizer.task import init_state, jit_step, make_model


def abstract_tokenizer_step(config: TokenizerRunConfig, mesh: Mesh) -> AbstractStep:
    """The step that `train_tokenizer.make_task` would jit on this mesh, on square images.

    The perceptual term is on where it has a weight, whether or not its files are named.

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
        _perceptual(mesh) if config.losses.perceptual else None,
        Batch(jax.ShapeDtypeStruct(pixels, np.uint8, sharding=batch_sharding(mesh))),
    )
    step = jit_step(model, config, shardings, mesh)
    return AbstractStep(in_mesh(mesh, step.lower), arguments)


def _perceptual(mesh: Mesh) -> dict[str, Any]:
    """The weights of LPIPS, whole on every device as in `make_task`."""
    layers = {
        name: {'kernel': shape, 'bias': shape[-1:]} for name, shape in convolution_shapes().items()
    }
    shapes = {'vgg': layers, 'heads': tuple((block[-1],) for block in BLOCKS)}
    is_shape = lambda x: isinstance(x, tuple) and isinstance(x[0], int)
    place = lambda x: jax.ShapeDtypeStruct(x, np.float32, sharding=replicated(mesh))
    return jax.tree.map(place, shapes, is_leaf=is_shape)
