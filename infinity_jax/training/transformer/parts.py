"""Configuration of a text-to-image run, and the stored parts that it starts from."""

import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from infinity_jax.data.buckets import SQUARE
from infinity_jax.errors import UserError
from infinity_jax.scales import BUDGET_OF_EDGE, ScaleSchedule, released_name
from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.training.checkpoint import check_start, load_weights
from infinity_jax.training.init_from import check_named, tokenizer_is_folded
from infinity_jax.training.run_folder import run_named
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.transformer.model import check_schedule, transformer_shapes
from infinity_jax.weights.model_folder import (
    DEMO_FOLDER,
    ModelBundle,
    load_model,
    pairing_problems,
    read_description,
)
from infinity_jax.weights.placement import place
from infinity_jax.weights.t5_folder import load_encoder


def load_parts(config: T2IConfig, mesh: Mesh | None = None) -> ModelBundle:
    """The parts that a run starts from: tokenizer, vocabulary and perhaps a text encoder.

    Args:
      mesh: the devices whose shards are read one by one; None gives numpy arrays.

    Raises:
      UserError: a folder is missing, or the parts do not fit the configuration.
    """
    check_named(
        config.data.image_size,
        config.transformer,
        tokenizer=bool(config.tokenizer),
        text_encoder=bool(config.text.folder) or config.text.encoder is not None,
    )
    tokenizer = config.tokenizer or DEMO_FOLDER
    bundle = load_model(tokenizer, parts=('tokenizer',), mesh=mesh)
    if bundle.tokenizer_params is None:
        raise UserError(f'{config.tokenizer}: holds no tokenizer; train one or name another folder')
    folder = _text_folder(config)
    bundle.text_tokenizer = TextTokenizer.from_folder(folder)
    if config.text.encoder is None:
        # What is only read keeps the file's dtype until `place_frozen` casts its shards.
        dtype = np.float32 if config.text.train else None
        bundle.text_config, bundle.text_params = load_encoder(folder, dtype, mesh)
    else:
        bundle.text_config = config.text.encoder
    bundle.transformer_config = config.transformer
    bundle.source = {**bundle.source, **_source_of(config.init_from)}
    bundle.schedule = run_schedule(config, bundle.schedule, tokenizer_is_folded(tokenizer))
    check_schedule(config.transformer, bundle.schedule)
    problems = pairing_problems(bundle)
    if config.text.encoder is not None and not config.text.train:
        problems.append('text.encoder describes a new text encoder, so set text.train to True')
    if bundle.text_config.vocab_size < bundle.text_tokenizer.vocab_size:
        problems.append(
            f'text.encoder.vocab_size is {bundle.text_config.vocab_size}, below the '
            f'{bundle.text_tokenizer.vocab_size} tokens of {folder}; raise it'
        )
    stride = bundle.tokenizer_config.stride * (2 if config.transformer.spatial_patchify else 1)
    size = bundle.schedule.image_size(stride)
    if size != (config.data.image_size,) * 2:
        problems.append(
            f'data.image_size is {config.data.image_size}, but the tokenizer is made for '
            f'images of {size}; change one of them'
        )
    if problems:
        raise UserError('; '.join(problems))
    return bundle


def place_frozen(config: T2IConfig, bundle: ModelBundle, mesh: Mesh) -> dict[str, Any]:
    """The parameters that no step changes, split over the mesh: {'tokenizer'} and perhaps {'text'}.

    The tokenizer is float32, since signs decide bits; the text encoder's matrices have the dtype of
    the transformer's products. Under adapters the transformer, float32, is frozen as well.
    """
    frozen = {'tokenizer': place(bundle.tokenizer_params, 'float32', bundle.tokenizer_config, mesh)}
    if not config.text.train:
        dtype = config.transformer.dtype
        frozen['text'] = place(bundle.text_params, dtype, bundle.text_config, mesh)
    if config.lora.rank:
        frozen['transformer'] = _load_base(config, mesh)
    return frozen


def read_text(config: T2IConfig) -> dict[str, Any]:
    """The weights of a frozen text encoder as numpy arrays, float32."""
    return load_encoder(_text_folder(config))[1]


def _text_folder(config: T2IConfig) -> str | pathlib.Path:
    """The folder or repository of the text encoder."""
    return config.text.folder or DEMO_FOLDER / 'text_encoder'


def _source_of(init_from: str) -> dict[str, Any]:
    """How the torch file of the transformer that a run started from was written, if it was one.

    A run that is resumed may have outlived that folder.
    """
    if not init_from or not pathlib.Path(init_from).exists() or run_named(init_from)[0]:
        return {}
    source = read_description(init_from)[1].get('source', {})
    return {name: value for name, value in source.items() if name == 'transformer'}


def run_schedule(config: T2IConfig, stored: ScaleSchedule | None, folded: bool) -> ScaleSchedule:
    """Token grids: from the code grids that the tokenizer was trained with, or as released.

    Args:
      stored: the schedule in the tokenizer's folder. A released one only says what another stage
        drew.
      folded: whether it is of tokens of 2x2 codes.

    Raises:
      UserError: there is none for the run's images, or its grids cannot be folded.
    """
    if stored is not None and released_name(stored) is None:
        code_grids = stored.code_grids(folded)
        fold = 2 if config.transformer.spatial_patchify else 1
        if any(n % fold for grid in code_grids for n in grid):
            raise UserError(
                f'transformer.spatial_patchify folds 2x2 codes, but the tokenizer has grids '
                f'{code_grids}; switch it off or use a tokenizer with even grids'
            )
        return ScaleSchedule.free((h // fold, w // fold) for h, w in code_grids)
    if config.data.image_size not in BUDGET_OF_EDGE:
        raise UserError(
            f'data.image_size is {config.data.image_size} and the tokenizer names no schedule '
            f'of its own; wanted one of {", ".join(map(str, BUDGET_OF_EDGE))}'
        )
    return ScaleSchedule.for_image(1.0, BUDGET_OF_EDGE[config.data.image_size])


def bucket_schedules(config: T2IConfig, bundle: ModelBundle) -> tuple[ScaleSchedule, ...]:
    """The schedules of a run, one a ratio; `bundle.schedule` is that of the square.

    Raises:
      UserError: several ratios are wanted and the square's schedule is not a released one.
    """
    names, budget = config.data.bucket_names, BUDGET_OF_EDGE.get(config.data.image_size)
    if names == (SQUARE,):
        return (bundle.schedule,)
    if budget is None or bundle.schedule != ScaleSchedule.for_image(SQUARE, budget):
        raise UserError(
            f'data.ratios are {names}, but the tokenizer is made for squares with grids '
            f"{bundle.schedule.grids}; set data.ratios to ('{SQUARE}',)"
        )
    return tuple(ScaleSchedule.for_image(name, budget) for name in names)


def load_start(config: T2IConfig, wanted: Any, mesh: Mesh) -> dict[str, Any]:
    """The weights of `config.init_from`: {'transformer'} and, when trained along, {'text'}.

    A checkpoint gives its averaged weights, which are what a finished run exports.

    Args:
      wanted: the configured tree of shapes.
      mesh: where the weights go, each device's shards read on their own.

    Raises:
      UserError: they have other shapes; the first that differs is named.
    """
    run_dir, step = run_named(config.init_from)
    if run_dir is None:
        model = load_model(config.init_from, parts=('transformer', 'text_encoder'), mesh=mesh)
        given = {'transformer': model.transformer_params, 'text': model.text_params}
    else:
        given = jax.device_get(load_weights(run_dir, step, 'ema'))
    params = {name: given.get(name) for name in wanted}
    check_start(config.init_from, wanted, params)
    return params


def _load_base(config: T2IConfig, mesh: Mesh) -> Any:
    """The frozen transformer of `config.init_from` under adapters, split over the mesh.

    Raises:
      UserError: it has other dimensions than the configuration.
    """
    given = load_model(config.init_from, parts=('transformer',), mesh=mesh).transformer_params
    check_start(config.init_from, transformer_shapes(config.transformer), given or {})
    return given
