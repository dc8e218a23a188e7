"""Trains the transformer: images and captions to bits, through the frozen tokenizer."""

import dataclasses
import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from infinity_jax.data.batch import Batch
from infinity_jax.images import contact_sheet, save_png
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.runtime.cpu_devices import one_at_a_time
from infinity_jax.runtime.host_texts import from_first_process
from infinity_jax.runtime.preemption import finishing
from infinity_jax.scales import BUDGET_OF_EDGE
from infinity_jax.sharding import (
    in_mesh,
    init_sharded,
    lack_of_bfloat16,
    make_mesh,
    replicated,
    shardings_of,
    to_host,
)
from infinity_jax.training import flops, loop
from infinity_jax.training.accumulate import check_parts
from infinity_jax.training.batches import first_batches, held_out_batches, make_batches, put_batch
from infinity_jax.training.config import init_key
from infinity_jax.training.init_from import check_partner, transformer_params
from infinity_jax.training.optimizer import TrainState, make_optimizer, new_state
from infinity_jax.training.run_folder import config_without_paths
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.training.transformer.encoded_once import (
    CHUNK,
    EncodedBatches,
    EncodedOnce,
    keeps_features,
)
from infinity_jax.training.transformer.features import check_features
from infinity_jax.training.transformer.next_commands import next_commands
from infinity_jax.training.transformer.parts import (
    check_base,
    check_card,
    frozen_text_params,
    load_parts,
    place_frozen,
    warn_of_unknown,
)
from infinity_jax.training.transformer.step import (
    WithFallback,
    encode,
    evaluation_step,
    init_state,
    jit_step,
    make_models,
)
from infinity_jax.transformer.lora import joined, merge, updates_of
from infinity_jax.weights.adapter_file import FILE_NAME, save_adapter
from infinity_jax.weights.model_folder import LoadedModel, load_model, save_model
from infinity_jax.weights.placement import place_model

SAMPLE_CAPTIONS = 16  # half from training pairs, half from held-out ones


def make_task(config: T2IConfig, mesh: Mesh) -> loop.Task:
    """Everything the loop needs, jitted and sharded here and nowhere else."""
    check_base(config)
    check_card(config, lack_of_bfloat16(mesh))
    check_parts(config.batch_size, config.accumulate_steps, mesh)
    loaded = load_parts(config, mesh)
    check_features(config, loaded)
    check_partner(config, loaded.configs.trained_with)
    models = make_models(config, loaded.configs)
    optimizer = make_optimizer(config.optimizer, config.steps)
    start_text = loaded.text_params if config.text.train else None

    def init(key: jax.Array) -> TrainState:
        return init_state(key, models, config)

    boxed = jax.eval_shape(init, jax.random.key(0))
    shapes, shardings = nn.unbox(boxed), shardings_of(boxed, mesh)
    start = jax.jit(lambda params: new_state(params, optimizer), out_shardings=shardings)

    def from_scratch(key: jax.Array) -> TrainState:
        state = init_sharded(init, mesh, key)
        return state if start_text is None else start({**state.params, 'text': start_text})

    def fresh() -> Any:
        return init_sharded(init, mesh, init_key(config.seed)).params

    def from_model() -> TrainState:
        if config.lora.rank:  # its weights are among the frozen parts
            return from_scratch(init_key(config.seed))
        return start(transformer_params(config, shapes.params, mesh, fresh))

    frozen = place_frozen(config, loaded, mesh)
    # `frozen` holds the text encoder on the devices.
    loaded = dataclasses.replace(loaded, text_params=None)
    step = WithFallback(lambda models: jit_step(models, config, shardings, mesh), models)
    evaluate_batch = one_at_a_time(
        mesh,
        WithFallback(
            lambda models: jax.jit(
                functools.partial(evaluation_step, models=models, config=config),
                out_shardings=replicated(mesh),
            ),
            models,
        ),
    )
    text = {
        'text_tokenizer': loaded.text_tokenizer,
        'text_length': config.transformer.text_length,
    }
    host_batches, batches = held_out_batches(config, **text), make_batches(config, 'train', **text)
    kept = list(host_batches)
    if keeps_features(config, mesh):
        program = jax.jit(functools.partial(encode, models=models))
        encode_pixels = in_mesh(mesh, one_at_a_time(mesh, program))
        once = EncodedOnce(
            lambda pixels: encode_pixels(frozen, put_batch(Batch(pixels_BYX3=pixels), mesh)),
            chunk=CHUNK * mesh.shape['data'] * mesh.shape['fsdp'],
        )
        kept, batches = [once(batch) for batch in host_batches], EncodedBatches(batches, once)
    held_out = [put_batch(batch, mesh) for batch in kept]
    trained = first_batches(config, 'train', 1, **text)[0].captions or []
    if loaded.text_tokenizer is not None and jax.process_index() == 0:
        read = [*trained, *(text for batch in host_batches for text in batch.captions or [])]
        warn_of_unknown(loaded.text_tokenizer, read, config.transformer.text_length)
    half = SAMPLE_CAPTIONS // 2
    captions = from_first_process(trained[:half] + (host_batches[0].captions or [])[:half])

    def evaluate(state: TrainState) -> dict[str, jax.Array]:
        results = [evaluate_batch(state.ema, frozen, b, i) for i, b in enumerate(held_out)]
        return jax.tree.map(lambda *x: sum(x) / len(x), *results)

    def complete_model(params: Any) -> LoadedModel:
        return dataclasses.replace(
            loaded,
            transformer_params=params.get('transformer'),
            tokenizer_params=to_host(frozen['tokenizer'], mesh),
            text_params=params.get('text'),
            configs=dataclasses.replace(
                loaded.configs, extra={'run': config_without_paths(config)}
            ),
        )

    def sample(state: TrainState, path: pathlib.Path) -> None:
        params = joined(frozen, state.ema, config.lora)
        on_mesh = dataclasses.replace(
            loaded,
            transformer_params=params['transformer'],
            tokenizer_params=params['tokenizer'],
            text_params=params['text'],
        )
        images = InfinityPipeline(place_model(on_mesh, mesh=mesh))(captions)
        if jax.process_index() == 0:
            save_png(path, contact_sheet(images.pixels, captions))

    def export(state: TrainState, folder: pathlib.Path) -> None:
        params = to_host(state.ema, mesh)
        complete = complete_model(params)
        if jax.process_index() == 0:
            # Frozen parts are read again: on the devices they may be rounded.
            if not config.text.train:
                complete = dataclasses.replace(complete, text_params=frozen_text_params(config))
            if config.lora.rank:
                base = load_model(config.init_from, parts=('transformer',)).transformer_params
                merged = merge(base, updates_of(params['lora'], config.lora))
                complete = dataclasses.replace(complete, transformer_params=merged)
                save_adapter(folder.parent / FILE_NAME, params['lora'], config.lora)
            save_model(folder, complete)

    def step_flops(batch: Batch) -> float:
        return flops.training_step(
            config.transformer,
            models.schedule_of(batch),
            config.batch_size,
            config.transformer.text_length,
            trained_text=loaded.configs.text if config.text.train else None,
            frozen_kernels=bool(config.lora.rank),
        ).total

    return loop.Task(
        init=from_scratch,
        abstract_state=loop.with_shardings(shapes, shardings),
        from_model=from_model if config.init_from else None,
        batches=batches,
        train_step=in_mesh(mesh, one_at_a_time(mesh, lambda state, x: step(state, frozen, x))),
        step_flops=step_flops,
        evaluate=in_mesh(mesh, evaluate),
        sample=sample,
        export=export,
    )


def train(config: T2IConfig) -> pathlib.Path:
    """Runs the whole training; returns the folder of the exported model."""
    mesh = make_mesh(config.mesh)
    on_emoji, first = not config.data.sources, jax.process_index() == 0
    large = config.data.image_size in BUDGET_OF_EDGE
    if on_emoji and large and first:
        print('data.sources is empty: the embedded emoji are used instead, see docs/data.md')
    folder = loop.run(config, make_task(config, mesh), mesh)
    if on_emoji and not large and first:
        from infinity_jax.training.transformer.demo_evaluation import evaluate_demo

        with finishing():
            evaluate_demo(folder, subset=config.data.subset, out=pathlib.Path(config.run_dir))
    if first:
        print(next_commands(folder, config.data))
    return folder
