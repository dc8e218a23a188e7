"""The training step of the transformer, from images and captions to an update; pure functions."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from infinity_jax.config import ModelConfigs, pixels_per_token, required
from infinity_jax.data.batch import Batch
from infinity_jax.images import from_uint8
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import compiler_options, replicated
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.training.accumulate import mean_of_parts
from infinity_jax.training.config import HELD_OUT_SEED, step_key
from infinity_jax.training.optimizer import (
    TrainState,
    apply_gradients,
    make_optimizer,
    make_schedule,
    new_state,
)
from infinity_jax.training.transformer.config import T2IConfig, bucket_schedules
from infinity_jax.training.transformer.loss import bit_loss
from infinity_jax.training.transformer.self_correction import corrupt, sample_flips
from infinity_jax.transformer.layers import sample_kept
from infinity_jax.transformer.lora import init_adapters, joined
from infinity_jax.transformer.model import Transformer, init_transformer, transformer_shapes


@dataclasses.dataclass(frozen=True)
class Models:
    """The networks of a run and their token grids, one schedule per bucket; static under jit."""

    transformer: Transformer
    autoencoder: Autoencoder
    text_encoder: T5Encoder
    schedules: tuple[ScaleSchedule, ...]

    def schedule_of(self, batch: Batch) -> ScaleSchedule:
        """The schedule of a batch's image shape; jit compiles one program per bucket."""
        stride = pixels_per_token(self.transformer.config, self.autoencoder.config)
        sizes = [schedule.image_size(stride) for schedule in self.schedules]
        if batch.features_Bhwd is None:
            assert batch.pixels_BYX3 is not None
            size = batch.pixels_BYX3.shape[1:3]
        else:
            h, w = batch.features_Bhwd.shape[1:3]
            size = h * self.autoencoder.config.stride, w * self.autoencoder.config.stride
        return self.schedules[sizes.index(size)]

    def init(self, key: jax.Array, train_text: bool) -> Any:
        """Random trained parameters, boxed: {'transformer'}, and {'text'} if `train_text`."""
        keys = jax.random.split(key)
        variables = init_transformer(self.transformer, keys[0], self.schedules[0])
        params = {'transformer': variables['params']}
        if train_text:
            ids, lengths = jnp.zeros((1, 1), jnp.int32), jnp.ones((1,), jnp.int32)
            params['text'] = self.text_encoder.init(keys[1], ids, lengths)['params']
        return params


def make_models(config: T2IConfig, configs: ModelConfigs) -> Models:
    """The networks of a model on the grids of the run's buckets."""
    transformer = required(configs.transformer, 'transformer')
    return Models(
        Transformer(transformer, config.attention, config.remat, config.layers),
        Autoencoder(required(configs.tokenizer, 'tokenizer')),
        T5Encoder(required(configs.text, 'text encoder'), jnp.dtype(configs.text_products)),
        bucket_schedules(config, configs),
    )


def batch_flips(key: jax.Array, batch: Batch, models: Models, config: T2IConfig) -> tuple:
    """Samples the bits of a batch that self-correction flips."""
    assert batch.lengths_B is not None
    return sample_flips(
        key,
        batch.lengths_B.shape[0],
        models.autoencoder.config.bits,
        models.schedule_of(batch),
        max_strength=config.self_correction.max_strength,
        group=config.self_correction.images_per_strength,
        patchify=models.transformer.config.spatial_patchify,
    )


def encode(frozen: Any, batch: Batch, models: Models) -> jax.Array:
    """Tokenizer features (B, h, w, d) of a batch: stored ones, or computed from its images."""
    if batch.features_Bhwd is not None:
        return batch.features_Bhwd.astype(jnp.float32)
    assert batch.pixels_BYX3 is not None
    pixels = from_uint8(batch.pixels_BYX3)
    variables = {'params': frozen['tokenizer']}
    features = models.autoencoder.apply(variables, pixels, method=Autoencoder.encode)
    return cast(jax.Array, features)


def encode_and_corrupt(
    flips: tuple, frozen: Any, batch: Batch, models: Models, *, requantize: bool = True
) -> tuple[jax.Array, jax.Array]:
    """The transformer's inputs (B, L − 1, d), without gradient, and target bits (B, L, d)."""
    inputs, targets = corrupt(
        encode(frozen, batch, models),
        models.schedule_of(batch),
        flips,
        patchify=models.transformer.config.spatial_patchify,
        requantize=requantize,
    )
    return jax.lax.stop_gradient(inputs), targets


def predict(
    params: Any, batch: Batch, inputs_BLd: jax.Array, models: Models, **options: Any
) -> jax.Array:
    """Logits (B, L, d, 2) from captions and inputs. `params` has 'transformer' and 'text'."""
    if batch.text_BTE is not None:
        text = batch.text_BTE.astype(jnp.float32)
    else:
        text = models.text_encoder.apply({'params': params['text']}, batch.ids_BT, batch.lengths_B)
    logits = models.transformer.apply(
        {'params': params['transformer']},
        text,
        batch.lengths_B,
        inputs_BLd,
        models.schedule_of(batch),
        **options,
    )
    return cast(jax.Array, logits)


def bit_metrics(loss: jax.Array, parts: Any, schedule: ScaleSchedule) -> dict[str, jax.Array]:
    """Names for the log; `accuracy` is the mean over all bits of an image."""
    share = jnp.array([h * w / schedule.num_tokens for h, w in schedule.grids])
    return {
        'loss': loss,
        'accuracy': jnp.sum(parts.accuracy * share),
        'majority_rate': jnp.sum(parts.majority_rate * share),
        'loss_per_scale': parts.loss,
        'accuracy_per_scale': parts.accuracy,
        'majority_rate_per_scale': parts.majority_rate,
    }


def train_step(
    state: TrainState, frozen: Any, batch: Batch, *, models: Models, config: T2IConfig
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update. Pure: all randomness comes from the seed and `state.step`.

    Random choices are sampled for the whole batch, so that they do not depend on its parts.
    """
    schedule = models.schedule_of(batch)
    key = step_key(config.seed, state.step)
    corrupt_key, drop_key, path_key = jax.random.split(key, 3)
    assert batch.lengths_B is not None
    shape = batch.lengths_B.shape
    choices = {
        'flips': batch_flips(corrupt_key, batch, models, config),
        'drop_condition_B': jax.random.bernoulli(drop_key, config.condition_drop, shape),
        'kept': sample_kept(path_key, models.transformer.config, *shape),
    }

    def loss_fn(params, rows):
        batch, choices = rows
        flips, options = choices['flips'], {n: x for n, x in choices.items() if n != 'flips'}
        inputs, targets = encode_and_corrupt(
            flips, frozen, batch, models, requantize=config.self_correction.requantize
        )
        logits = predict(joined(frozen, params, config.lora), batch, inputs, models, **options)
        return bit_loss(logits, targets, schedule, reweight=config.reweight_scales)

    gradients_of = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, parts), grads = mean_of_parts(
        lambda rows: gradients_of(state.params, rows), (batch, choices), config.accumulate_steps
    )
    learning_rate = make_schedule(config.optimizer, config.steps)(state.step - state.skipped)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state, update = apply_gradients(state, grads, loss, optimizer, config.optimizer)
    metrics = bit_metrics(loss, parts, schedule)
    return state, {**metrics, **update, 'learning_rate': learning_rate}


def evaluation_step(
    params: Any, frozen: Any, batch: Batch, index: int, *, models: Models, config: T2IConfig
) -> dict[str, jax.Array]:
    """Metrics of one held-out batch; `index` alone decides its flips, and no caption is dropped."""
    schedule = models.schedule_of(batch)
    key = jax.random.fold_in(jax.random.key(HELD_OUT_SEED), index)
    flips = batch_flips(key, batch, models, config)

    def losses_of(rows):
        batch, flips = rows
        inputs, targets = encode_and_corrupt(
            flips, frozen, batch, models, requantize=config.self_correction.requantize
        )
        logits = predict(joined(frozen, params, config.lora), batch, inputs, models)
        return bit_loss(logits, targets, schedule, reweight=config.reweight_scales)

    # In parts as in training: the tokenizer needs more memory per image than a layer does.
    loss, parts = mean_of_parts(losses_of, (batch, flips), config.accumulate_steps)
    return bit_metrics(loss, parts, schedule)


def init_state(key: jax.Array, models: Models, config: T2IConfig) -> TrainState:
    """The (boxed) state before the first step of a run that starts from random weights."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    if config.lora.rank:
        boxed = transformer_shapes(config.transformer, boxed=True)
        return new_state({'lora': init_adapters(key, boxed, config.lora)}, optimizer)
    return new_state(models.init(key, config.text.train), optimizer)


def jit_step(models: Models, config: T2IConfig, shardings: Any, mesh: Mesh) -> Any:
    """`train_step` as (state, frozen, batch) -> (state, metrics) on a mesh, the state donated."""
    return jax.jit(
        functools.partial(train_step, models=models, config=config),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )
