"""Checks that stored features equal those that a run would compute itself."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from infinity_jax.config import required
from infinity_jax.data.config import SPLITS
from infinity_jax.data.features.reader import FeatureInfo, TextInfo, read_info
from infinity_jax.errors import UserError
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.weights.model_folder import LoadedModel


def check_features(config: T2IConfig, loaded: LoadedModel) -> None:
    """Raises `UserError` where a source of kind 'features' was not made for this run.

    Args:
      config: its data may name any number of such sources.
      loaded: the run's frozen parts.
    """
    sources = [s for split in SPLITS for s in config.data.sources_of(split) if s.kind == 'features']
    read = {source.path: read_info(pathlib.Path(source.path)) for source in sources}
    infos = {path: info for path, info in read.items() if info}  # the reader refuses others
    if not infos:
        return
    tokenizer = tokenizer_fingerprint(loaded)
    with_text = any(info.text for info in infos.values())
    if with_text and config.text.train:
        raise UserError(
            f'data source {next(iter(infos))} holds text features of a frozen encoder, but '
            'text.train is True; set it to False, or precompute with --text none'
        )
    text = text_fingerprint(loaded) if with_text else ''
    for path, info in infos.items():
        expected = {
            'tokenizer': tokenizer,
            'image_size': config.data.image_size,
            'ratios': config.data.bucket_names,
        }
        if info.text:
            expected['text.encoder'] = text
            expected['text.length'] = config.transformer.text_length
        _compare(path, info, expected)


def _compare(path: str, info: FeatureInfo, expected: dict[str, Any]) -> None:
    """Raises `UserError` where a field of `info`, by its dotted name, has another value."""
    for name, value in expected.items():
        made_with = functools.reduce(getattr, name.split('.'), info)
        if made_with != value:
            raise UserError(
                f'data source {path}: its features were made with {name} {made_with!r}, but this '
                f'run has {value!r}; use what they were made with, or precompute them again'
            )


def tokenizer_fingerprint(loaded: LoadedModel) -> str:
    """Fingerprint of the tokenizer's encoder."""
    config = dataclasses.asdict(required(loaded.configs.tokenizer, 'tokenizer'))
    return fingerprint(config, required(loaded.tokenizer_params, 'tokenizer')['encoder'])


def text_fingerprint(loaded: LoadedModel) -> str:
    """Fingerprint of the text encoder and its vocabulary."""
    files = required(loaded.text_tokenizer, 'vocabulary').files
    vocabulary = hashlib.sha256(files['tokenizer.json']).hexdigest()
    config = required(loaded.configs.text, 'text encoder')
    described = {**dataclasses.asdict(config), 'vocabulary': vocabulary}
    return fingerprint(described, loaded.text_params)


def text_info(loaded: LoadedModel, dtype: str, captions: str) -> TextInfo:
    """The description of text features of this encoder, for the folder that stores them."""
    length = required(loaded.configs.transformer, 'transformer').text_length
    width = required(loaded.configs.text, 'text encoder').width
    return TextInfo(text_fingerprint(loaded), length, width, dtype, captions)


def fingerprint(described: dict[str, Any], params: Any) -> str:
    """A digest of a JSON description and of weights, on the host or on devices.

    Weights are compared as bfloat16, so a model that was stored in that dtype counts as the same.
    """
    sums = {
        name: (leaf.shape, np.asarray(_sums(leaf)).tolist())
        for name, leaf in sorted(flatten_dict(params, sep='.').items())
    }
    text = json.dumps([described, sums], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@jax.jit
def _sums(leaf: jax.Array) -> jax.Array:
    """Sums of the weights' bits, plain and weighted by position; exact in any order."""
    words = jax.lax.bitcast_convert_type(leaf.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        along = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        position = position * jnp.uint32(0x9E3779B1) + along + 1
    return jnp.stack([words.sum(dtype=jnp.uint32), (words * position).sum(dtype=jnp.uint32)])
