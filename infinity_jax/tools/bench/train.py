"""A training step of the transformer, for `infinity-jax bench train`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from infinity_jax.config import TextConfig
from infinity_jax.data.batch import Batch
from infinity_jax.data.config import DataConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tools.bench.products import products_of
from infinity_jax.tools.bench.stage import Measured, Stage, measure
from infinity_jax.tools.bench.workload import Workload, preset, random_features, random_params
from infinity_jax.training.optimizer import OptimizerConfig, make_optimizer, new_state
from infinity_jax.training.transformer.config import T2IConfig, TextTraining
from infinity_jax.training.transformer.step import Models, train_step
from infinity_jax.transformer.model import Transformer, transformer_shapes

STEPS = 1000  # of the run; only its schedules use the number
LEARNING_RATE = 6e-5


def bench_train(workload: Workload, **options: Any) -> Measured:
    """Measures `train_step` from stored image and text features on one device.

    Each step continues from the state of the previous one, which is donated as in training;
    `options` are those of `measure`.
    """
    config, tokenizer = preset(workload.preset, workload.precision)
    run_config = T2IConfig(
        task='t2i',
        run_dir='',
        steps=STEPS,
        batch_size=workload.batch,
        data=DataConfig(),
        optimizer=OptimizerConfig(LEARNING_RATE),
        transformer=config,
        text=TextTraining(),
    )
    schedule = ScaleSchedule.for_image(workload.ratio, workload.budget)
    text_encoder = T5Encoder(TextConfig(), jnp.dtype(workload.precision))
    models = Models(
        Transformer(config, layers=run_config.layers),
        Autoencoder(tokenizer),
        text_encoder,
        (schedule,),
    )
    step = functools.partial(train_step, models=models, config=run_config)
    grid = schedule.code_grids(config.spatial_patchify)[-1]
    text_shape = (workload.batch, workload.text_length, config.text_channels)
    batch = Batch(
        features_Bhwd=random_features((workload.batch, *grid, config.bits)),
        text_BTE=random_features(text_shape),
        lengths_B=jnp.full((workload.batch,), workload.text_length, jnp.int32),
    )
    params = {'transformer': random_params(transformer_shapes, config)}
    state = new_state(params, make_optimizer(run_config.optimizer, STEPS))
    groups = products_of(step, state, {}, batch)
    compiled = jax.jit(step, donate_argnums=0)

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, {}, batch)
        return metrics

    return measure([Stage('train', run, groups)], dtype=workload.precision, **options)
