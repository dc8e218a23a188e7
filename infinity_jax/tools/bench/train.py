"""A training step of the transformer, for `infinity-jax bench train`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TextConfig, required
from infinity_jax.data.batch import Batch
from infinity_jax.data.config import DataConfig
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tools.bench.products import products_of
from infinity_jax.tools.bench.stage import Measured, Stage, measure
from infinity_jax.tools.bench.workload import (
    DEMO,
    Workload,
    preset,
    random_features,
    random_params,
    schedule_of,
)
from infinity_jax.training.optimizer import OptimizerConfig, make_optimizer, new_state
from infinity_jax.training.transformer.config import T2IConfig, TextTraining
from infinity_jax.training.transformer.step import Models, train_step
from infinity_jax.transformer.model import Transformer, transformer_shapes
from infinity_jax.weights.model_folder import read_configs
from infinity_jax.weights.t5_folder import encoder_shapes

STEPS = 1000  # of the run; only its schedules use the number
LEARNING_RATE = 6e-5


def bench_train(workload: Workload, **options: Any) -> Measured:
    """Measures `train_step` on one device.

    Each step continues from the state of the previous one, which is donated as in training;
    `options` are those of `measure`. Image features are stored. So are text features, but the demo
    trains its text encoder as its training run does.
    """
    text_config = None
    if workload.preset == DEMO:
        configs = read_configs(DEMO_FOLDER)
        config = dataclasses.replace(
            required(configs.transformer, 'transformer'), dtype=workload.precision
        )
        tokenizer, text_config = required(configs.tokenizer, 'tokenizer'), configs.text
    else:
        config, tokenizer = preset(workload.preset, workload.precision)
    run_config = T2IConfig(
        task='t2i',
        run_dir='',
        steps=STEPS,
        batch_size=workload.batch,
        data=DataConfig(),
        optimizer=OptimizerConfig(LEARNING_RATE),
        transformer=config,
        text=TextTraining(encoder=text_config, train=text_config is not None),
    )
    text_encoder = T5Encoder(text_config or TextConfig(), jnp.dtype(workload.precision))
    transformer = Transformer(config, layers=run_config.layers)
    models = Models(transformer, Autoencoder(tokenizer), text_encoder, (schedule_of(workload),))
    step = functools.partial(train_step, models=models, config=run_config)
    params = {'transformer': random_params(transformer_shapes, config)}
    if text_config is not None:
        params['text'] = random_params(encoder_shapes, text_config)
    batch = _batch(workload, models, text_config)
    state = new_state(params, make_optimizer(run_config.optimizer, STEPS))
    groups = products_of(step, state, {}, batch)
    compiled = jax.jit(step, donate_argnums=0)

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, {}, batch)
        return metrics

    return measure([Stage('train', run, groups)], dtype=workload.precision, **options)


def _batch(workload: Workload, models: Models, text_config: TextConfig | None) -> Batch:
    """Random features of images, and of texts unless an encoder is trained, which reads ids."""
    config, rows = models.transformer.config, workload.batch
    length = min(workload.text_length, config.text_length)
    grid = models.schedules[0].code_grids(config.spatial_patchify)[-1]
    batch = Batch(
        features_Bhwd=random_features((rows, *grid, config.bits)),
        lengths_B=jnp.full((rows,), length, jnp.int32),
    )
    if text_config is None:
        return batch._replace(text_BTE=random_features((rows, length, config.text_channels)))
    ids = np.random.default_rng(0).integers(0, text_config.vocab_size, (rows, length))
    return batch._replace(ids_BT=jnp.asarray(ids, jnp.int32))
