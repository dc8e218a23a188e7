"""What a tokenizer's training takes from the model that it starts from."""

from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax.config import UserError
from infinity_jax.training.checkpoint import check_start, load_weights
from infinity_jax.training.run_folder import run_named
from infinity_jax.weights.model_folder import load_model

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
