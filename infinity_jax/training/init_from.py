"""What a tokenizer's training takes from the model that it starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import BUDGET_OF_EDGE
from infinity_jax.training.checkpoint import check_start, load_weights
from infinity_jax.training.run_folder import run_named
from infinity_jax.weights.model_folder import load_model, read_description

# The convolutions next to the quantizer, whose width is the number of bits.
BIT_LAYERS = ('encoder.conv_out.kernel', 'encoder.conv_out.bias', 'decoder.conv_in.kernel')


def starting_params(init_from: str, fresh: Any, *, freeze_encoder: bool = False) -> Any:
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


def with_model_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a t2i run; one whose `transformer` names no depth has those of `init_from`.

    Dimensions, tokenizer and text encoder are then that folder's. What `fields` do give and is not
    None, such as another drop_path, stays.

    Raises:
      UserError: `init_from` is empty or holds no transformer.
    """
    given = {n: v for n, v in (fields.get('transformer') or {}).items() if v is not None}
    if 'depth' in given:
        return fields
    folder = fields.get('init_from') or ''
    if not folder:
        raise UserError(
            'config.init_from is empty: name the model folder to start from, or set '
            'config.transformer.depth, width and num_heads for a new model'
        )
    folder, described = read_description(folder)
    if 'transformer' not in described:
        raise UserError(f'config.init_from {folder}: holds no transformer; name another folder')
    text = dict(fields.get('text') or {})
    text['folder'] = text.get('folder') or str(folder / 'text_encoder')
    return {
        **fields,
        'transformer': {**described['transformer'], **given},
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


def tokenizer_is_folded(folder: str | Path) -> bool:
    """Whether the schedule in a folder has token grids of half the code grids (patchify)."""
    described = read_description(folder)[1]
    return bool(described.get('transformer', {}).get('spatial_patchify', False))
