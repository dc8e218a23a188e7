"""A training step of the transformer, for `infinity-jax bench train`."""

from typing import Any

import jax
import jax.numpy as jnp

from infinity_jax.bench import Measured, Stage, measure
from infinity_jax.bench_generate import Workload
from infinity_jax.bench_models import preset, random_features, random_params
from infinity_jax.losses import bit_loss
from infinity_jax.optimizer import OptimizerConfig, apply_gradients, make_optimizer, new_state
from infinity_jax.part_weights import transformer_shapes
from infinity_jax.scales import ScaleSchedule
from infinity_jax.self_correction import corrupt
from infinity_jax.transformer.model import Transformer

STEPS = 1000  # of the run that this step would be one of; only schedules ask


def bench_train(workload: Workload, **options: Any) -> Measured:
    """Measures a step from stored picture and text features: corrupt, predict, update.

    Every step starts from the same state, so nothing is donated: memory is higher than in training
    by one copy of the state.
    """
    config, _ = preset(workload.preset, workload.precision)
    schedule = ScaleSchedule.for_picture(workload.ratio, workload.budget)
    model, settings = Transformer(config), OptimizerConfig()
    optimizer = make_optimizer(settings, STEPS)
    state = new_state(random_params(transformer_shapes, config), optimizer)
    grid = schedule.code_grids(config.spatial_patchify)[-1]
    features_Bhwd = random_features((workload.batch, *grid, config.bits))
    text_BTE = random_features((workload.batch, workload.text_length, config.text_channels))
    lengths_B = jnp.full((workload.batch,), workload.text_length, jnp.int32)

    @jax.jit
    def step(state, features_Bhwd, text_BTE, lengths_B):
        key = jax.random.key(0)
        inputs, targets = corrupt(key, features_Bhwd, schedule, patchify=config.spatial_patchify)

        def loss_of(params):
            logits = model.apply(
                {'params': params},
                text_BTE,
                lengths_B,
                inputs,
                schedule,
                deterministic=False,
                rngs={'drop_path': key},
            )
            return bit_loss(logits, targets, schedule)[0]

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        return apply_gradients(state, gradients, loss, optimizer, settings)[0]

    stage = Stage.of('train', step, step, state, features_Bhwd, text_BTE, lengths_B)
    return measure([stage], dtype=workload.precision, **options)
