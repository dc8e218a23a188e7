"""Training task of the bitwise tokenizer: autoencoder and multi-scale quantizer, on images."""

import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infinity_jax.config import ModelConfigs
from infinity_jax.data.batch import Batch
from infinity_jax.images import contact_sheet, save_png, to_uint8
from infinity_jax.runtime.cpu_devices import one_at_a_time
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import (
    in_mesh,
    init_sharded,
    make_mesh,
    replicated,
    shardings_of,
    to_host,
)
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.training import flops, loop
from infinity_jax.training.accumulate import check_parts
from infinity_jax.training.batches import held_out_batches, make_batches, put_batch
from infinity_jax.training.config import init_key
from infinity_jax.training.init_from import tokenizer_params
from infinity_jax.training.optimizer import TrainState, make_optimizer, new_state
from infinity_jax.training.run_folder import config_without_paths
from infinity_jax.training.tokenizer.adversarial import add_discriminator
from infinity_jax.training.tokenizer.config import TokenizerRunConfig, check
from infinity_jax.training.tokenizer.lpips_files import lpips_or_none
from infinity_jax.training.tokenizer.step import evaluation_step, train_step
from infinity_jax.weights.model_folder import LoadedModel, save_model


def make_model(config: TokenizerRunConfig) -> Autoencoder:
    """The network that the configuration describes."""
    return Autoencoder(
        config.tokenizer,
        jnp.dtype(config.dtype),
        precision=jax.lax.Precision(config.precision),
        remat=config.remat,
    )


def init_state(key: jax.Array, model: Autoencoder, config: TokenizerRunConfig) -> TrainState:
    """The (boxed) state before the first step of a run that starts from random weights."""
    size = config.data.image_size
    params = model.init(key, jnp.zeros((1, size, size, 3)))['params']
    state = new_state(params, make_optimizer(config.optimizer, config.steps))
    if not config.adversarial.weight:
        return state
    return add_discriminator(state, jax.random.fold_in(key, 1), (size, size), config)


def jit_step(model: Autoencoder, config: TokenizerRunConfig, shardings: Any, mesh: Mesh) -> Any:
    """`train_step` as (state, lpips_params, batch) -> (state, metrics), the state donated."""
    return jax.jit(
        functools.partial(train_step, model=model, config=config),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_task(config: TokenizerRunConfig, mesh: Mesh) -> loop.Task:
    """Everything the loop needs, jitted and sharded here and nowhere else."""
    check_parts(config.batch_size, config.accumulate_steps, mesh)
    model = make_model(config)

    def init(key: jax.Array) -> TrainState:
        return init_state(key, model, config)

    boxed = jax.eval_shape(init, jax.random.key(0))
    shapes, shardings = nn.unbox(boxed), shardings_of(boxed, mesh)

    def from_model() -> TrainState:
        fresh = init_sharded(init, mesh, init_key(config.seed))
        params = tokenizer_params(
            config.init_from, fresh.params, freeze_encoder=config.freeze_encoder
        )
        start = lambda state, p: state.replace(params=p, ema=jax.tree.map(jnp.copy, p))
        return jax.jit(start, out_shardings=shardings)(fresh, params)

    lpips_params = lpips_or_none(config.losses.perceptual, config.vgg_weights, config.lpips_heads)
    lpips_params = jax.device_put(lpips_params, replicated(mesh))
    step = jit_step(model, config, shardings, mesh)
    evaluate_batch = one_at_a_time(
        mesh,
        jax.jit(
            functools.partial(evaluation_step, model=model, config=config),
            out_shardings=replicated(mesh),
        ),
    )
    held_out = [put_batch(batch, mesh) for batch in held_out_batches(config)]

    def train_on(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        return step(state, lpips_params, batch)

    def evaluate(state: TrainState) -> dict[str, jax.Array]:
        results = [evaluate_batch(state.ema, lpips_params, batch)[0] for batch in held_out]
        return jax.tree.map(lambda *x: sum(x) / len(x), *results)

    def sample(state: TrainState, path: pathlib.Path) -> None:
        originals, pixels = evaluate_batch(state.ema, lpips_params, held_out[0])[1]
        names = ['original'] * len(originals) + ['reconstruction'] * len(pixels)
        images = np.asarray(to_uint8(jnp.concatenate([originals, pixels])))
        if jax.process_index() == 0:
            save_png(path, contact_sheet(images, names, columns=len(originals)))

    def export(state: TrainState, folder: pathlib.Path) -> None:
        configs = ModelConfigs(
            tokenizer=config.tokenizer,
            schedule=ScaleSchedule.free(config.grids) if config.grids else None,
            extra={'run': config_without_paths(config)},
        )
        loaded = LoadedModel(configs, tokenizer_params=to_host(state.ema, mesh))
        if jax.process_index() == 0:
            save_model(folder, loaded)

    def step_flops(batch: Batch) -> float:
        assert batch.pixels_BYX3 is not None
        height, width = batch.pixels_BYX3.shape[1:3]
        return flops.tokenizer_training_step(
            config.tokenizer,
            height,
            width,
            config.batch_size,
            frozen_encoder=config.freeze_encoder,
        )

    return loop.Task(
        init=lambda key: init_sharded(init, mesh, key),
        abstract_state=loop.with_shardings(shapes, shardings),
        from_model=from_model if config.init_from else None,
        batches=make_batches(config, 'train'),
        train_step=in_mesh(mesh, one_at_a_time(mesh, train_on)),
        step_flops=step_flops,
        evaluate=in_mesh(mesh, evaluate),
        sample=in_mesh(mesh, sample),
        export=export,
    )


def train(config: TokenizerRunConfig) -> pathlib.Path:
    """Runs the whole training; returns the folder of the exported tokenizer."""
    check(config)
    mesh = make_mesh(config.mesh)
    return loop.run(config, make_task(config, mesh), mesh)
