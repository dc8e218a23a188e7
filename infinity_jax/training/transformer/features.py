"""Checks that stored features equal those that a run would compute itself."""

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

from infinity_jax.config import required
from infinity_jax.data.config import SPLITS
from infinity_jax.data.features.reader import FeatureInfo, TextInfo, read_info
from infinity_jax.errors import UserError
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.weights.fingerprint import fingerprint
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
    """Fingerprint of the tokenizer's encoder, next to all of its configuration."""
    config = dataclasses.asdict(required(loaded.configs.tokenizer, 'tokenizer'))
    return fingerprint(config, required(loaded.tokenizer_params, 'tokenizer')['encoder'])


def text_fingerprint(loaded: LoadedModel) -> str:
    """Fingerprint of the text encoder and its vocabulary."""
    files = required(loaded.text_tokenizer, 'vocabulary').files
    vocabulary = hashlib.sha256(files['tokenizer.json']).hexdigest()
    config = required(loaded.configs.text, 'text encoder')
    described = {**dataclasses.asdict(config), 'vocabulary': vocabulary}
    return fingerprint(described, required(loaded.text_params, 'text encoder'))


def text_info(loaded: LoadedModel, dtype: str, captions: str) -> TextInfo:
    """The description of text features of this encoder, for the folder that stores them."""
    length = required(loaded.configs.transformer, 'transformer').text_length
    width = required(loaded.configs.text, 'text encoder').width
    return TextInfo(text_fingerprint(loaded), length, width, dtype, captions)
