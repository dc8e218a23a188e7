"""The training step of a run from its configuration alone: shapes instead of arrays."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infinity_jax.config import (
    ModelConfigs,
    QuantizationConfig,
    TextConfig,
    released_tokenizer,
    required,
)
from infinity_jax.data.batch import Batch
from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.scales import BUDGET_OF_EDGE
from infinity_jax.sharding import batch_sharding, in_mesh, shardings_of
from infinity_jax.tools.plan.program_cost import AbstractProgram
from infinity_jax.training import loop
from infinity_jax.training.accumulate import check_parts
from infinity_jax.training.transformer.config import T2IConfig, run_schedule
from infinity_jax.training.transformer.parts import with_run_text_dtype
from infinity_jax.training.transformer.task import init_state, jit_step, make_models
from infinity_jax.transformer.int8 import int8_shardings
from infinity_jax.weights.model_folder import read_configs
from infinity_jax.weights.placement import placed_shapes, shardings_on
from infinity_jax.weights.t5_folder import read_text_config


def configured_parts(config: T2IConfig) -> ModelConfigs:
    """The configurations of the parts of a run; reads no weights.

    Where the run names no folder of a tokenizer or a text encoder, images of a released size get
    the released tokenizer and T5-XL, others the parts of the demo.

    Raises:
      UserError: the parts do not fit each other, or a named folder is missing.
    """
    transformer = config.transformer
    demo = read_configs(DEMO_FOLDER)
    released = config.data.image_size in BUDGET_OF_EDGE
    if config.tokenizer:
        stored = read_configs(config.tokenizer)
    elif not released:
        stored = dataclasses.replace(demo, transformer=None)
    else:
        stored = ModelConfigs(tokenizer=released_tokenizer(transformer))
    text = config.text.encoder
    if text is None and config.text.folder:
        text = read_text_config(config.text.folder)
    elif text is None:
        text = TextConfig() if released else demo.text
    schedule = run_schedule(config, stored.schedule, stored.spatial_patchify)
    configs = ModelConfigs(transformer, stored.tokenizer, text, schedule)
    if problems := configs.problems():
        raise UserError('; '.join(problems))
    return configs


def abstract_step(
    config: T2IConfig,
    configs: ModelConfigs,
    mesh: Mesh,
    source: str = 'images',
    unrolled: bool = False,
) -> AbstractProgram:
    """The training step that `make_task` would jit on this mesh.

    Args:
      config: the run; its batch size counts the images on all devices of the mesh.
      configs: see `configured_parts`; of several ratios, the square one is used.
      mesh: of devices that need not exist.
      source: 'images' runs the frozen tokenizer and text encoder in the step, 'features' has
        their precomputed features in the batch.
      unrolled: whether the layers are unrolled instead of scanned.

    Raises:
      UserError: the batch does not split over the mesh.
    """
    check_parts(config.batch_size, config.accumulate_steps, mesh)
    configs = with_run_text_dtype(config, configs, mesh)
    models = make_models(config, configs)
    transformer = models.transformer.clone(layers='unrolled' if unrolled else config.layers)
    schedule = required(configs.schedule, 'schedule')
    models = dataclasses.replace(models, transformer=transformer, schedules=(schedule,))
    boxed = jax.eval_shape(lambda key: init_state(key, models, config), jax.random.key(0))
    shardings = shardings_of(boxed, mesh)
    arguments = (
        loop.with_shardings(nn.unbox(boxed), shardings),
        _frozen(config, configs, mesh, source),
        _batch(config, configs, mesh, source),
    )
    step = jit_step(models, config, shardings, mesh)
    return AbstractProgram(in_mesh(mesh, step.lower), arguments)


def _frozen(config: T2IConfig, configs: ModelConfigs, mesh: Mesh, source: str) -> dict[str, Any]:
    """The frozen weights, with the shardings of `place_frozen`."""
    frozen = {}
    if source == 'images':
        frozen['tokenizer'] = _on_mesh(configs.tokenizer, 'float32', mesh)
        if not config.text.train:
            frozen['text'] = _on_mesh(configs.text, configs.text_products, mesh)
    if config.lora.rank:
        frozen['transformer'] = _on_mesh(config.transformer, config.frozen_dtype, mesh)
    return frozen


def _on_mesh(part: Any, dtype: str, mesh: Mesh) -> Any:
    shardings = shardings_on(part, mesh)
    if dtype != 'int8':
        return loop.with_shardings(placed_shapes(part, dtype), shardings)
    shapes = placed_shapes(part, 'float32', QuantizationConfig(weights='int8'))
    return loop.with_shardings(shapes, int8_shardings(shardings))


def _batch(config: T2IConfig, configs: ModelConfigs, mesh: Mesh, source: str) -> Batch:
    """A batch of square images with captions padded to the full length, or of their features."""
    count, length = config.batch_size, config.transformer.text_length
    schedule = required(configs.schedule, 'schedule')
    grid = schedule.code_grids(config.transformer.spatial_patchify)[-1]
    tokenizer = required(configs.tokenizer, 'tokenizer')
    stride = tokenizer.stride
    sharding = batch_sharding(mesh)

    def rows(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), dtype, sharding=sharding)

    batch = Batch(lengths_B=rows(np.int32))
    if source == 'features':
        features = rows(np.float32, *grid, tokenizer.bits)
        batch = batch._replace(features_Bhwd=features)
    else:
        batch = batch._replace(pixels_BYX3=rows(np.uint8, *(stride * n for n in grid), 3))
    if source == 'features' and not config.text.train:
        width = required(configs.text, 'text encoder').width
        return batch._replace(text_BTE=rows(jnp.bfloat16, length, width))
    return batch._replace(ids_BT=rows(np.int32, length))
