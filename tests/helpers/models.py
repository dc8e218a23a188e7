"""Loaded models by keyword, for tests that need a part or two."""

import dataclasses

import jax
import numpy as np

from infinity_jax.config import ModelConfigs
from infinity_jax.weights.model_folder import LoadedModel

CONFIGS = {
    'transformer_config': 'transformer',
    'tokenizer_config': 'tokenizer',
    'text_config': 'text',
    'schedule': 'schedule',
    'source': 'source',
    'extra': 'extra',
    'trained_with': 'trained_with',
}


def model_of(**parts):
    """A `LoadedModel` of its fields and those of `ModelConfigs`, the latter by the names above."""
    configs = {CONFIGS[name]: parts.pop(name) for name in tuple(parts) if name in CONFIGS}
    return LoadedModel(ModelConfigs(**configs), **parts)


def changed(loaded, **parts):
    """`loaded` with other fields, named as in `model_of`."""
    configs = {CONFIGS[name]: parts.pop(name) for name in tuple(parts) if name in CONFIGS}
    configs = dataclasses.replace(loaded.configs, **configs)
    return dataclasses.replace(loaded, configs=configs, **parts)


def assert_same(a, b):
    """Trees of equal structure and equal arrays."""
    jax.tree.map(np.testing.assert_array_equal, a, b)
