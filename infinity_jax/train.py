"""Trains the transformer: pictures and captions to bits, through the frozen tokenizer."""

import dataclasses
import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from infinity_jax import flops, loop
from infinity_jax.accumulate import check_parts, mean_gradients
from infinity_jax.adapter_file import FILE_NAME, save_adapter
from infinity_jax.lora import init_adapters, joined
from infinity_jax.losses import bit_loss
from infinity_jax.matcher import contact_sheet
from infinity_jax.model_folder import ModelBundle, save_model
from infinity_jax.optimizer import (
    TrainState,
    apply_gradients,
    make_optimizer,
    make_schedule,
    new_state,
)
from infinity_jax.part_weights import transformer_shapes
from infinity_jax.pictures import from_uint8, save_png
from infinity_jax.pipeline import InfinityPipeline
from infinity_jax.preemption import finishing
from infinity_jax.run_folder import recipe
from infinity_jax.scales import BUDGET_OF_EDGE, ScaleSchedule
from infinity_jax.self_correction import corrupt, draw_flips
from infinity_jax.sharding import (
    from_first_process,
    in_mesh,
    init_sharded,
    make_mesh,
    replicated,
    shardings_of,
    to_host,
)
from infinity_jax.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.train_features import check_features
from infinity_jax.train_parts import (
    T2IConfig,
    bucket_schedules,
    load_parts,
    load_start,
    place_frozen,
    read_text,
)
from infinity_jax.transformer.drop_path import draw_kept
from infinity_jax.transformer.model import Transformer, init_transformer

SAMPLE_CAPTIONS = 16  # half from training pairs, half from held-out ones


@dataclasses.dataclass(frozen=True)
class Models:
    """The networks of a run and the grids they work on, a schedule a bucket; static under jit."""

    transformer: Transformer
    autoencoder: Autoencoder
    text_encoder: T5Encoder
    schedules: tuple[ScaleSchedule, ...]

    def schedule_of(self, batch: Any) -> ScaleSchedule:
        """The schedule that a batch's picture shape tells; under jit a program a bucket."""
        stride = self.autoencoder.config.stride
        stride *= 2 if self.transformer.config.spatial_patchify else 1
        sizes = [schedule.picture_size(stride) for schedule in self.schedules]
        if 'features_Bhwd' in batch:
            h, w = batch['features_Bhwd'].shape[1:3]
            size = h * self.autoencoder.config.stride, w * self.autoencoder.config.stride
        else:
            size = batch['pixels_BYX3'].shape[1:3]
        return self.schedules[sizes.index(size)]

    def init(self, key: jax.Array, train_text: bool) -> Any:
        """Boxed trained parameters: {'transformer'} and, when trained along, {'text'}."""
        keys = jax.random.split(key)
        variables = init_transformer(self.transformer, keys[0], self.schedules[0])
        params = {'transformer': variables['params']}
        if train_text:
            ids, lengths = jnp.zeros((1, 1), jnp.int32), jnp.ones((1,), jnp.int32)
            params['text'] = self.text_encoder.init(keys[1], ids, lengths)['params']
        return params


def make_models(config: T2IConfig, bundle: ModelBundle) -> Models:
    """The networks of a bundle on the grids of the run's buckets."""
    return Models(
        Transformer(bundle.transformer_config, config.attention, config.remat),
        Autoencoder(bundle.tokenizer_config),
        T5Encoder(bundle.text_config, jnp.dtype(bundle.transformer_config.dtype)),
        bucket_schedules(config, bundle),
    )


def flips_of(key: jax.Array, batch: Any, models: Models, config: T2IConfig) -> tuple:
    """The bits of a batch that self-correction flips."""
    return draw_flips(
        key,
        batch['lengths_B'].shape[0],
        models.autoencoder.config.bits,
        models.schedule_of(batch),
        max_strength=config.self_correction.max_strength,
        per_picture=config.self_correction.per_picture,
        patchify=models.transformer.config.spatial_patchify,
    )


def encode(frozen: Any, batch: Any, models: Models) -> jax.Array:
    """Tokenizer features (B, h, w, d) of a batch of pictures, or those that it brings along."""
    if 'features_Bhwd' in batch:
        return batch['features_Bhwd'].astype(jnp.float32)
    pixels = from_uint8(batch['pixels_BYX3'])
    return models.autoencoder.apply(
        {'params': frozen['tokenizer']}, pixels, method=Autoencoder.encode
    )


def encode_and_corrupt(
    flips: tuple, frozen: Any, batch: Any, models: Models
) -> tuple[jax.Array, jax.Array]:
    """Pictures to the transformer's inputs (B, L − 1, d) and target bits (B, L, d); no gradient."""
    inputs, targets = corrupt(
        encode(frozen, batch, models),
        models.schedule_of(batch),
        flips,
        patchify=models.transformer.config.spatial_patchify,
    )
    return jax.lax.stop_gradient(inputs), targets


def predict(
    params: Any, batch: Any, inputs_BLd: jax.Array, models: Models, **options: Any
) -> jax.Array:
    """Captions and inputs to logits (B, L, d, 2). `params` has 'transformer' and 'text'."""
    if 'text_BTE' in batch:
        text = batch['text_BTE'].astype(jnp.float32)
    else:
        text = models.text_encoder.apply(
            {'params': params['text']}, batch['ids_BT'], batch['lengths_B']
        )
    return models.transformer.apply(
        {'params': params['transformer']},
        text,
        batch['lengths_B'],
        inputs_BLd,
        models.schedule_of(batch),
        **options,
    )


def bit_metrics(loss: jax.Array, parts: Any, schedule: ScaleSchedule) -> dict[str, jax.Array]:
    """Names for the log; `accuracy` is the mean over all bits of a picture."""
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
    state: TrainState, frozen: Any, batch: Any, *, models: Models, config: T2IConfig
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update. Pure: every random draw comes from the seed and `state.step`.

    All is drawn for the whole batch, so that parts of it see what the whole would.
    """
    schedule = models.schedule_of(batch)
    key = loop.step_key(config.seed, state.step)
    corrupt_key, drop_key, path_key = jax.random.split(key, 3)
    shape = batch['lengths_B'].shape
    draws = {
        'flips': flips_of(corrupt_key, batch, models, config),
        'drop_condition_B': jax.random.bernoulli(drop_key, config.condition_drop, shape),
        'kept': draw_kept(path_key, models.transformer.config, *shape),
    }

    def loss_fn(params, rows):
        batch, draws = rows
        flips, options = draws['flips'], {n: x for n, x in draws.items() if n != 'flips'}
        inputs, targets = encode_and_corrupt(flips, frozen, batch, models)
        logits = predict(joined(frozen, params, config.lora), batch, inputs, models, **options)
        return bit_loss(logits, targets, schedule, reweight=config.reweight_scales)

    (loss, parts), grads = mean_gradients(
        loss_fn, state.params, (batch, draws), config.accumulate_steps
    )
    learning_rate = make_schedule(config.optimizer, config.steps)(state.step - state.skipped)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state, update = apply_gradients(state, grads, loss, optimizer, config.optimizer)
    metrics = bit_metrics(loss, parts, schedule)
    return state, {**metrics, **update, 'learning_rate': learning_rate}


def evaluation_step(
    params: Any, frozen: Any, batch: Any, index: int, *, models: Models, config: T2IConfig
) -> dict[str, jax.Array]:
    """Metrics of one held-out batch, its flips always the same ones, all captions kept."""
    schedule = models.schedule_of(batch)
    key = jax.random.fold_in(jax.random.key(loop.HELD_OUT_SEED), index)
    flips = flips_of(key, batch, models, config)
    inputs, targets = encode_and_corrupt(flips, frozen, batch, models)
    logits = predict(joined(frozen, params, config.lora), batch, inputs, models)
    loss, parts = bit_loss(logits, targets, schedule, reweight=config.reweight_scales)
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
    )


def make_task(config: T2IConfig, mesh: Mesh) -> loop.Task:
    """Everything the loop needs, jitted and sharded here and nowhere else."""
    check_parts(config.batch_size, config.accumulate_steps, mesh)
    bundle = load_parts(config, mesh)
    check_features(config, bundle)
    models = make_models(config, bundle)
    optimizer = make_optimizer(config.optimizer, config.steps)
    start_text = bundle.text_params if config.text.train else None

    def init(key: jax.Array) -> TrainState:
        return init_state(key, models, config)

    boxed = jax.eval_shape(init, jax.random.key(0))
    shapes, shardings = nn.unbox(boxed), shardings_of(boxed, mesh)
    start = jax.jit(lambda params: new_state(params, optimizer), out_shardings=shardings)

    def from_scratch(key: jax.Array) -> TrainState:
        state = init_sharded(init, mesh, key)
        return state if start_text is None else start({**state.params, 'text': start_text})

    def from_model() -> TrainState:
        if config.lora.rank:  # that model is among the frozen parts
            return from_scratch(loop.init_key(config.seed))
        return start(load_start(config, shapes.params, mesh))

    frozen = place_frozen(config, bundle, mesh)
    bundle.text_params = None  # the arrays that `place_frozen` cast are not needed twice
    step = jit_step(models, config, shardings, mesh)
    evaluate_batch = jax.jit(
        functools.partial(evaluation_step, models=models, config=config),
        out_shardings=replicated(mesh),
    )
    text = {
        'text_tokenizer': bundle.text_tokenizer,
        'text_length': config.transformer.text_length,
    }
    host_batches = loop.held_out_batches(config, **text)
    held_out = [loop.put_batch(batch, mesh) for batch in host_batches]
    trained = loop.first_batches(config, 'train', 1, **text)[0]['captions']
    half = SAMPLE_CAPTIONS // 2
    captions = from_first_process(trained[:half] + host_batches[0]['captions'][:half])

    def evaluate(state: TrainState) -> dict[str, jax.Array]:
        results = [evaluate_batch(state.ema, frozen, b, i) for i, b in enumerate(held_out)]
        return jax.tree.map(lambda *x: sum(x) / len(x), *results)

    def full_bundle(state: TrainState) -> ModelBundle:
        params = joined(frozen, state.ema, config.lora)
        return dataclasses.replace(
            bundle,
            transformer_params=to_host(params['transformer'], mesh),
            tokenizer_params=to_host(params['tokenizer'], mesh),
            text_params=to_host(params['text'], mesh) if config.text.train else None,
            extra={'run': recipe(config)},
        )

    def sample(state: TrainState, path: pathlib.Path) -> None:
        params = joined(frozen, state.ema, config.lora)
        on_mesh = dataclasses.replace(
            bundle,
            transformer_params=params['transformer'],
            tokenizer_params=params['tokenizer'],
            text_params=params['text'],
        )
        pictures = InfinityPipeline(on_mesh, mesh=mesh)(captions)
        if jax.process_index() == 0:
            save_png(path, contact_sheet(pictures.pixels, captions))

    def export(state: TrainState, folder: pathlib.Path) -> None:
        complete = full_bundle(state)
        adapters = to_host(state.ema['lora'], mesh) if config.lora.rank else None
        if jax.process_index() == 0:
            if not config.text.train:  # as it was read: on the devices it may be rounded
                complete.text_params = read_text(config)
            save_model(folder, complete)
            if adapters is not None:
                save_adapter(folder.parent / FILE_NAME, adapters, config.lora)

    def step_flops(batch: Any) -> float:
        return flops.training_step(
            config.transformer,
            models.schedule_of(batch),
            config.batch_size,
            config.transformer.text_length,
            trained_text=bundle.text_config if config.text.train else None,
        ).total

    return loop.Task(
        init=from_scratch,
        abstract_state=loop.with_shardings(shapes, shardings),
        from_model=from_model if config.init_from else None,
        batches=loop.make_batches(config, 'train', **text),
        train_step=in_mesh(mesh, lambda state, batch: step(state, frozen, batch)),
        step_flops=step_flops,
        evaluate=in_mesh(mesh, evaluate),
        sample=sample,
        export=export,
    )


def train(config: T2IConfig) -> pathlib.Path:
    """Runs the whole training; returns the folder of the exported model."""
    mesh = make_mesh(config.mesh)
    on_emoji, first = not config.data.sources, jax.process_index() == 0
    large = config.data.picture_size in BUDGET_OF_EDGE
    if on_emoji and large and first:
        print('data.sources is empty: the embedded emoji stand in, see docs/data.md')
    folder = loop.run(config, make_task(config, mesh), mesh)
    if on_emoji and not large and first:
        from infinity_jax.evaluate import evaluate_demo  # draws with the finished model

        with finishing():
            evaluate_demo(folder, subset=config.data.subset, out=pathlib.Path(config.run_dir))
    return folder
