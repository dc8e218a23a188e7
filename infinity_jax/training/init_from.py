"""The start of a run, all in one place: resume, else `config.init_from`, else random weights.

`run_config` completes a configuration from the model folder that it names, `starting_state` decides
how a run starts, and the functions after it read the weights of `init_from` for each task.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from infinity_jax.config import TransformerConfig, required
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping
from infinity_jax.ranges import short
from infinity_jax.runtime.local_files import check_path
from infinity_jax.training.checkpoint import Checkpoints
from infinity_jax.training.checkpoint_weights import load_weights, shapes_by_name
from infinity_jax.training.config import RunConfig
from infinity_jax.training.run_folder import run_named
from infinity_jax.training.tokenizer.config import TokenizerRunConfig
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.training.transformer.partial_start import described, merged, new_parts
from infinity_jax.weights.fingerprint import partner_fingerprint
from infinity_jax.weights.model_folder import existing_folder, load_model, read_configs
from infinity_jax.weights.t5_folder import read_text_config
from infinity_jax.weights.weight_files import read_json

TASKS = {'t2i': T2IConfig, 'tokenizer': TokenizerRunConfig}
# The layers next to the quantizer, whose shapes contain the number of bits.
BIT_LAYERS = ('encoder.conv_out.kernel', 'encoder.conv_out.bias', 'decoder.conv_in.kernel')


def run_config(fields: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run, from the fields of its config file.

    A t2i run whose `transformer` lacks depth, width or num_heads takes the missing fields from the
    model folder `init_from`, and from those of its tokenizer and text encoder if it names them.

    Args:
      fields: a `ConfigDict`, as `get_config` of a config file returns.

    Raises:
      UserError: the task is unknown, a field is unknown, missing or mistyped, or `init_from` is not
        a model folder.
    """
    task = fields.get('task')
    if not isinstance(task, str) or task not in TASKS:
        raise UserError(f'config field task is {short(task)}; wanted one of {", ".join(TASKS)}')
    if task == 't2i':
        fields = _with_model_fields(fields)
    config: RunConfig = from_mapping(TASKS[task], fields)
    check_path(config.run_dir, 'config field run_dir')
    return config


def _with_model_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Completes the fields of a t2i run whose `transformer` lacks depth, width or num_heads.

    Dimensions, tokenizer and text encoder are then those of the folder `init_from`, except where
    `fields` has a value other than None, such as another drop_path. Another tokenizer gives the
    number of bits, another text encoder the text channels.

    Raises:
      UserError: `init_from` is empty or holds no transformer.
    """
    transformer = fields.get('transformer') or {}
    if not hasattr(transformer, 'items'):
        raise UserError(
            f'config field transformer is {short(transformer)}; wanted a group of fields'
        )
    given = {n: v for n, v in transformer.items() if v is not None}
    if given.keys() >= {'depth', 'width', 'num_heads'}:
        return {**fields, 'transformer': given}
    folder = fields.get('init_from') or ''
    if not folder:
        raise UserError(
            'config.init_from is empty: name the model folder to start from, or set '
            'config.transformer.depth, width and num_heads for a new model'
        )
    _check_types(fields)  # read here, before `from_mapping` checks all types
    configs, folder = read_configs(folder), existing_folder(folder)
    if configs.transformer is None:
        raise UserError(f'config.init_from {folder}: holds no transformer; name another folder')
    text = dict(fields.get('text') or {})
    dimensions = dataclasses.asdict(configs.transformer)
    if fields.get('tokenizer') and (tokenizer := read_configs(fields['tokenizer']).tokenizer):
        dimensions['bits'] = tokenizer.bits
    if text.get('folder'):
        dimensions['text_channels'] = read_text_config(text['folder']).width
    text['folder'] = text.get('folder') or str(folder / 'text_encoder')
    return {
        **fields,
        'transformer': {**dimensions, **given},
        'tokenizer': fields.get('tokenizer') or str(folder),
        'text': text,
    }


def _check_types(fields: Mapping[str, Any]) -> None:
    """Raises `UserError` unless the fields that name folders hold text."""
    text = fields.get('text') or {}
    if not hasattr(text, 'items'):
        raise UserError(f'config field text is {short(text)}; wanted a group of fields')
    named = {name: fields.get(name) for name in ('init_from', 'tokenizer')}
    for name, value in {**named, 'text.folder': text.get('folder')}.items():
        if not isinstance(value, (str, os.PathLike, type(None))):
            raise UserError(f'config field {name} is {short(value)}; wanted a path as text')
        if value:
            check_path(os.fspath(value), f'config field {name}')


def starting_state(
    checkpoints: Checkpoints,
    abstract_state: Any,
    *,
    from_scratch: Callable[[], Any],
    from_model: Callable[[], Any] | None,
    init_from: str = '',
    changes: Callable[[], str] = str,
    say: Callable[[str], None] = print,
) -> Any:
    """The state that a run starts from: resumed, else with the weights of `init_from`, else random.

    Args:
      checkpoints: of this run; the newest whole one, if any, is resumed.
      abstract_state: tree of ShapeDtypeStructs with shardings.
      from_scratch: makes a new state with random weights.
      from_model: makes a new state with the weights of `config.init_from`; None when unset.
      init_from: `config.init_from`, for the printed line.
      changes: how the configuration differs from that of the last start, in a line, or ''.
      say: prints a line; called in the first process only.

    Raises:
      UserError: the checkpoint does not fit the configuration; changed fields are named.
    """
    if jax.process_index() != 0:
        say = lambda _: None
    try:
        state = checkpoints.restore_newest(abstract_state, say)
    except UserError as error:
        raise UserError('; '.join(filter(None, (str(error), changes())))) from None
    if state is not None:
        instead = f', so not from config.init_from {init_from}' if init_from else ''
        say(f'resuming from {checkpoints.folder / str(checkpoints.latest_step)}{instead}')
        return state
    if from_model is not None:
        say(f'no checkpoint of this run yet: starting from the weights of {init_from}')
        return from_model()
    say('no checkpoint of this run yet and no config.init_from: starting from random weights')
    return from_scratch()


def transformer_params(
    config: T2IConfig, shapes: Any, mesh: Mesh, fresh: Callable[[], Any]
) -> dict[str, Any]:
    """The weights of `config.init_from`: {'transformer'}, and {'text'} if it is trained.

    A run or checkpoint gives its averaged weights, which a finished run exports. Where the model
    has other dimensions, or `config.new_parts` are named, these parts are new; a line says which.

    Args:
      config: the run.
      shapes: the configured tree of shapes.
      mesh: where the weights go, each device's shards read by themselves.
      fresh: makes the random weights of the run.

    Raises:
      UserError: they have other shapes in parts that cannot be new; the first one is named.
    """
    run_dir, step = run_named(config.init_from)
    if run_dir is None:
        model = load_model(config.init_from, parts=('transformer', 'text_encoder'), mesh=mesh)
        given = {'transformer': model.transformer_params, 'text': model.text_params}
    else:
        given = jax.device_get(load_weights(run_dir, step, 'ema'))
    params = {name: given.get(name) for name in shapes}
    if params['transformer'] is None:
        raise UserError(f'config.init_from {config.init_from}: holds no transformer')
    asked = config.new_parts
    given_shapes = shapes_by_name(params['transformer'])
    try:
        parts = new_parts(given_shapes, shapes_by_name(shapes['transformer']), asked)
    except UserError as error:
        raise UserError(f'config.init_from {config.init_from}: {error}') from None
    if parts:
        new = fresh()['transformer']
        merge = jax.jit(
            functools.partial(merged, parts=parts, asked=asked),
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, new),
        )
        params['transformer'] = merge(params['transformer'], new)
        if jax.process_index() == 0:
            for line in described(_transformer_of(config.init_from), config.transformer, asked):
                print(f'config.init_from {config.init_from}: {line}')
    check_shapes(config.init_from, shapes, params)
    return params


def _transformer_of(init_from: str) -> TransformerConfig:
    """The dimensions of the transformer in a model folder, or of a run or checkpoint."""
    run_dir, _ = run_named(init_from)
    if run_dir is None:
        return required(read_configs(init_from).transformer, 'transformer')
    fields = read_json(run_dir / 'config.json').get('transformer', {})
    return from_mapping(TransformerConfig, fields, 'transformer', stored=True)


def check_partner(config: T2IConfig, trained_with: str) -> None:
    """Compares the run's tokenizer with the one that the model of `init_from` was trained with.

    A model folder without a record is taken to have been trained with the tokenizer in it.

    Args:
      config: the run.
      trained_with: fingerprint of its tokenizer.

    Raises:
      UserError: they differ, and word embedding and head would not start with new weights.
    """
    if not config.init_from or run_named(config.init_from)[0]:
        return
    if not existing_folder(config.init_from).exists():  # a resumed run has outlived it
        return
    configs = read_configs(config.init_from)
    if configs.transformer is None or configs.transformer.bits != config.transformer.bits:
        return
    wanted = configs.trained_with
    if not wanted and configs.tokenizer:
        params = load_model(config.init_from, None, ('tokenizer',)).tokenizer_params
        params = required(params, 'tokenizer')
        in_float16 = any(leaf.dtype == np.float16 for leaf in jax.tree.leaves(params))
        wanted = '' if in_float16 else partner_fingerprint(configs.tokenizer, params)
    if wanted in ('', trained_with) or {'word_embed', 'head'} <= {*config.new_parts}:
        return
    raise UserError(
        f'config.tokenizer {config.tokenizer} has the fingerprint {trained_with}, but the model of '
        f'config.init_from {config.init_from} was trained with {wanted}: the same number of bits, '
        "with another meaning. Name that model's own tokenizer, or set config.new_parts to "
        "('word_embed', 'head'), which then start from random values"
    )


def torch_source(init_from: str) -> dict[str, Any]:
    """The layout of the torch file from which the transformer of `init_from` was imported.

    Empty if there was no such file, or if a resumed run has outlived that folder.
    """
    if not init_from or not existing_folder(init_from).exists() or run_named(init_from)[0]:
        return {}
    source = read_configs(init_from).source
    return {name: value for name, value in source.items() if name == 'transformer'}


def tokenizer_params(init_from: str, fresh: Any, *, freeze_encoder: bool = False) -> Any:
    """The weights of a tokenizer in `init_from`, and new ones for layers that it lacks.

    A tokenizer of another d, or an imported continuous autoencoder of another number of channels,
    gives all but the convolutions next to the quantizer. A deeper decoder gets blocks that are the
    identity at first. A line is printed for each of the two.

    Args:
      init_from: a model folder, or the folder of a run or checkpoint, which gives averaged weights.
      fresh: random parameters of the configured tokenizer, as arrays.
      freeze_encoder: whether the run freezes the encoder, so that none of its layers may be new.

    Raises:
      UserError: no such folder, no tokenizer in it, other layers differ, or a frozen encoder would
        have a new layer.
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
    resized = [n for n in BIT_LAYERS if n in given and np.shape(given[n]) != np.shape(fresh[n])]
    added = _added_blocks(given, fresh)
    merged = {**given, **{name: fresh[name] for name in resized}, **added}
    check_shapes(init_from, unflatten_dict(fresh, sep='.'), unflatten_dict(merged, sep='.'))
    given_bits, bits = (tree['encoder.conv_out.bias'].shape[0] for tree in (given, fresh))
    if resized and freeze_encoder:
        raise UserError(
            f'config.freeze_encoder is set and tokenizer.bits is {bits}, but config.init_from '
            f'{init_from} has {given_bits}: a random {BIT_LAYERS[0]} would be kept; set '
            f'tokenizer.bits to {given_bits}, or freeze_encoder to False'
        )
    if jax.process_index() == 0:
        if resized:
            print(
                f'config.init_from {init_from} has {given_bits} bits, not {bits}: '
                f'{", ".join(resized)} new'
            )
        if added:
            blocks = sorted({name.rsplit('.', 2)[0] for name in added})
            print(f'config.init_from {init_from} has a shallower decoder: {", ".join(blocks)} new')
    return unflatten_dict(merged, sep='.')


def _added_blocks(given: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """The additional blocks of a deeper decoder; their last convolution starts at zero."""
    levels = {name.split('.')[1] for name in given if name.startswith('decoder.up_')}
    return {
        name: np.zeros_like(leaf) if '.conv2.' in name else leaf
        for name, leaf in fresh.items()
        if name not in given and name.split('.')[1] in levels and '.block_' in name
    }


def check_shapes(init_from: str, shapes: Any, given: Any) -> None:
    """Raises `UserError` unless the weights of `init_from` have the configured shapes.

    Args:
      init_from: the folder, for the message.
      shapes: the configured tree of shapes.
      given: the loaded tree.
    """
    configured, loaded = shapes_by_name(shapes), shapes_by_name(given)
    for name in sorted(configured.keys() | loaded.keys()):
        if configured.get(name) != loaded.get(name):
            raise UserError(
                f'config.init_from {init_from}: {name} is {loaded.get(name, "absent")}, but the '
                f"config wants {configured.get(name, 'none')}; use that model's own dimensions"
            )
