"""What a run starts from, all in one place: resume, else `config.init_from`, else random weights.

`run_config` completes a configuration from the model folder that it names; `starting_state` decides
what wins; the functions below it read the weights of `init_from` for each task.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from infinity_jax.config import TransformerConfig, from_mapping
from infinity_jax.errors import UserError
from infinity_jax.scales import BUDGET_OF_EDGE
from infinity_jax.training.checkpoint import Checkpoints, load_weights, shapes_by_name
from infinity_jax.training.config import RunConfig
from infinity_jax.training.run_folder import run_named
from infinity_jax.training.tokenizer.config import TokenizerRunConfig
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.transformer.model import transformer_shapes
from infinity_jax.weights.model_folder import load_model, present, read_configs

TASKS = {'t2i': T2IConfig, 'tokenizer': TokenizerRunConfig}
# The convolutions next to the quantizer, whose width is the number of bits.
BIT_LAYERS = ('encoder.conv_out.kernel', 'encoder.conv_out.bias', 'decoder.conv_in.kernel')


def run_config(fields: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run, from the fields of its config file.

    A t2i run whose `transformer` names no depth takes what is missing from the model folder
    `init_from`; nothing else is read.

    Args:
      fields: a `ConfigDict`, as `get_config` of a config file returns.

    Raises:
      UserError: another task, a field that is unknown, missing or mistyped, or no such folder.
    """
    task = fields.get('task')
    if task not in TASKS:
        raise UserError(f'config field task is {task!r}; wanted one of {", ".join(TASKS)}')
    if task == 't2i':
        fields = _with_model_fields(fields)
    return from_mapping(TASKS[task], fields)


def _with_model_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a t2i run; one whose `transformer` names no depth has those of `init_from`.

    Dimensions, tokenizer and text encoder are then that folder's. What `fields` do give and is not
    None, such as another drop_path, stays.

    Raises:
      UserError: `init_from` is empty or holds no transformer.
    """
    transformer = fields.get('transformer') or {}
    if not hasattr(transformer, 'items'):
        raise UserError(
            f'config field transformer is {transformer!r:.60}; wanted a group of fields'
        )
    given = {n: v for n, v in transformer.items() if v is not None}
    if 'depth' in given:
        return fields
    folder = fields.get('init_from') or ''
    if not folder:
        raise UserError(
            'config.init_from is empty: name the model folder to start from, or set '
            'config.transformer.depth, width and num_heads for a new model'
        )
    configs, folder = read_configs(folder), present(folder)
    if configs.transformer is None:
        raise UserError(f'config.init_from {folder}: holds no transformer; name another folder')
    text = dict(fields.get('text') or {})
    text['folder'] = text.get('folder') or str(folder / 'text_encoder')
    return {
        **fields,
        'transformer': {**dataclasses.asdict(configs.transformer), **given},
        'tokenizer': fields.get('tokenizer') or str(folder),
        'text': text,
    }


def check_named(
    image_size: int, transformer: TransformerConfig, *, tokenizer: bool, text_encoder: bool
) -> None:
    """Raises `UserError` where a model of the paper's kind would get the demo's parts.

    Args:
      image_size: of the run's data, in pixels; the demo's parts are for smaller ones than the
        paper's.
      transformer: what the parts must fit.
      tokenizer, text_encoder: whether the configuration names one.
    """
    if image_size not in BUDGET_OF_EDGE:
        return
    missing = []
    if not tokenizer:
        missing.append(
            f'config.tokenizer is empty: name a model folder with a tokenizer of '
            f'{transformer.bits} bits (infinity-jax convert from-torch, or configs/tokenizer.py)'
        )
    if not text_encoder:
        missing.append(
            'config.text.folder is empty: name a Hugging Face folder of a T5 encoder of width '
            f'{transformer.text_channels}; Flan-T5-XL has 2048'
        )
    if missing:
        raise UserError('; '.join(missing))


def starting_state(
    checkpoints: Checkpoints,
    abstract_state: Any,
    *,
    from_scratch: Callable[[], Any],
    from_model: Callable[[], Any] | None,
    init_from: str = '',
    say: Callable[[str], None] = print,
) -> Any:
    """The one place that says what wins at the start: resume, then initialise from, then scratch.

    Args:
      checkpoints: of this run; if it holds any, the newest is resumed.
      abstract_state: tree of ShapeDtypeStructs with shardings.
      from_scratch: makes a new state with random weights.
      from_model: makes a new state with the weights of `config.init_from`; None when unset.
      init_from: what `config.init_from` says, for the line.
      say: prints a line; the first process does.
    """
    if jax.process_index() != 0:
        say = lambda _: None
    step = checkpoints.latest_step
    if step is not None:
        instead = f', so not from config.init_from {init_from}' if init_from else ''
        say(f'resuming from {checkpoints.folder / str(step)}{instead}')
        return checkpoints.restore(step, abstract_state)
    if from_model is not None:
        say(f'no checkpoint of this run yet: starting from the weights of {init_from}')
        return from_model()
    say('no checkpoint of this run yet and no config.init_from: starting from random weights')
    return from_scratch()


def check_start(init_from: str, wanted: Any, given: Any) -> None:
    """Raises `UserError` unless the weights of `init_from` have the configured shapes.

    Args:
      init_from: the folder, for the message.
      wanted: the configured tree of shapes.
      given: the loaded tree.
    """
    wanted, given = shapes_by_name(wanted), shapes_by_name(given)
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise UserError(
                f'config.init_from {init_from}: {name} is {given.get(name, "absent")}, but the '
                f"config wants {wanted.get(name, 'none')}; use that model's own dimensions"
            )


def transformer_params(config: T2IConfig, wanted: Any, mesh: Mesh) -> dict[str, Any]:
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


def base_params(config: T2IConfig, mesh: Mesh) -> Any:
    """The frozen transformer of `config.init_from` under adapters, split over the mesh.

    Raises:
      UserError: it has other dimensions than the configuration.
    """
    given = load_model(config.init_from, parts=('transformer',), mesh=mesh).transformer_params
    check_start(config.init_from, transformer_shapes(config.transformer), given or {})
    return given


def source_of(init_from: str) -> dict[str, Any]:
    """How the torch file of the transformer that a run started from was written, if it was one.

    A run that is resumed may have outlived that folder.
    """
    if not init_from or not pathlib.Path(init_from).exists() or run_named(init_from)[0]:
        return {}
    source = read_configs(init_from).source
    return {name: value for name, value in source.items() if name == 'transformer'}


def tokenizer_params(init_from: str, fresh: Any, *, freeze_encoder: bool = False) -> Any:
    """The weights of `init_from`, and new ones for what it lacks, which is said in one line.

    A tokenizer of another d, or an imported continuous autoencoder of another number of channels,
    gives all but the convolutions next to the quantizer. A deeper decoder gets blocks that change
    nothing at first.

    Args:
      init_from: a model folder, or a run's or checkpoint's, which gives averaged weights.
      fresh: parameters at the start of a new run, as arrays.
      freeze_encoder: the run keeps the encoder, so none of it may be new.

    Raises:
      UserError: no such folder, no tokenizer in it, other layers differ, or part of a frozen
        encoder would be new.
    """
    run_dir, step = run_named(init_from)
    if run_dir is None:
        given = load_model(init_from, parts=('tokenizer',)).tokenizer_params
    else:
        given = jax.device_get(load_weights(run_dir, step, 'ema'))
    if 'decoder' not in (given or {}):
        raise UserError(
            f'config.init_from {init_from}: holds no tokenizer; name a model folder with one, or '
            'a run of configs/tokenizer.py'
        )
    given, fresh = flatten_dict(given, sep='.'), flatten_dict(fresh, sep='.')
    other = [n for n in BIT_LAYERS if n in given and np.shape(given[n]) != np.shape(fresh[n])]
    deeper = _added_blocks(given, fresh)
    merged = {**given, **{name: fresh[name] for name in other}, **deeper}
    check_start(init_from, unflatten_dict(fresh, sep='.'), unflatten_dict(merged, sep='.'))
    was, now = (x['encoder.conv_out.bias'].shape[0] for x in (given, fresh))
    if other and freeze_encoder:
        raise UserError(
            f'config.freeze_encoder is set and tokenizer.bits is {now}, but config.init_from '
            f'{init_from} has {was}: a random {BIT_LAYERS[0]} would be kept; set tokenizer.bits to '
            f'{was}, or freeze_encoder to False'
        )
    if jax.process_index() == 0:
        if other:
            print(f'config.init_from {init_from} has {was} bits, not {now}: {", ".join(other)} new')
        if deeper:
            blocks = sorted({name.rsplit('.', 2)[0] for name in deeper})
            print(f'config.init_from {init_from} has a shallower decoder: {", ".join(blocks)} new')
    return unflatten_dict(merged, sep='.')


def _added_blocks(given: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """The decoder's blocks beyond those that are given; their last convolution starts at zero."""
    levels = {name.split('.')[1] for name in given if name.startswith('decoder.up_')}
    return {
        name: np.zeros_like(leaf) if '.conv2.' in name else leaf
        for name, leaf in fresh.items()
        if name not in given and name.split('.')[1] in levels and '.block_' in name
    }
