"""Adapters change the kernels they name by (alpha / rank) A B, and nothing else."""

import dataclasses
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.tiny import TRANSFORMER, lively, transformer_variables

from infinity_jax.config import PRESETS
from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.sharding import MeshConfig, make_mesh, shardings_of
from infinity_jax.transformer.lora import MATRICES, LoraConfig, init_adapters, joined, merge
from infinity_jax.transformer.model import transformer_shapes
from infinity_jax.weights.model_folder import read_description

CONFIG = LoraConfig(rank=3, alpha=6.0)


def boxed(config, lora):
    shapes = transformer_shapes(config, boxed=True)
    return jax.eval_shape(lambda key: init_adapters(key, shapes, lora), jax.random.key(0))


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_merging_adds_the_scaled_product():
    base = transformer_variables()['params']
    adapters = lively(nn.unbox(boxed(TRANSFORMER, CONFIG)))
    merged = flatten_dict(merge(base, adapters, CONFIG), sep='.')
    changed = []
    for name, array in flatten_dict(base, sep='.').items():
        matrix = name.removeprefix('blocks.').removesuffix('.kernel')
        if matrix in MATRICES:
            outer, inner = matrix.split('.')
            a, b = (np.asarray(adapters[outer][inner][half], np.float64) for half in 'ab')
            np.testing.assert_allclose(merged[name], array + 2.0 * (a @ b), rtol=1e-5, atol=1e-5)
            changed.append(matrix)
        else:
            assert merged[name] is array or (merged[name] == array).all()
    assert sorted(changed) == sorted(MATRICES)


def test_new_adapters_change_nothing():
    base = transformer_variables()['params']
    shapes = transformer_shapes(TRANSFORMER, boxed=True)
    adapters = nn.unbox(init_adapters(jax.random.key(0), shapes, CONFIG))
    assert adapters['ffn']['up']['a'].any()
    jax.tree.map(np.testing.assert_array_equal, merge(base, adapters, CONFIG), base)


def test_joined_parts():
    base = transformer_variables()['params']
    adapters = lively(nn.unbox(boxed(TRANSFORMER, CONFIG)))
    parts = joined({'transformer': base, 'text': 1}, {'lora': adapters}, CONFIG)
    assert set(parts) == {'transformer', 'text'}
    kernel = parts['transformer']['blocks']['ffn']['up']['kernel']
    assert not np.array_equal(kernel, base['blocks']['ffn']['up']['kernel'])
    assert joined({'text': 1}, {'transformer': 2}, LoraConfig()) == {'text': 1, 'transformer': 2}


def test_names_choose_matrices():
    config = LoraConfig(rank=2, matrices=('ffn', 'self_attention.qkv'))
    assert config.targets == ('self_attention.qkv', 'ffn.up', 'ffn.down')
    adapters = nn.unbox(boxed(TRANSFORMER, config))
    assert set(flatten_dict(adapters, sep='.')) == {
        f'{name}.{half}' for name in config.targets for half in 'ab'
    }


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'rank': -1}, 'lora.rank is -1'),
        ({'rank': 1, 'matrices': ('qkv',)}, "lora.matrices names 'qkv'; wanted some of self_att"),
        ({'rank': 1, 'matrices': ()}, 'lora.matrices is empty'),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**fields)


def test_under_two_percent_are_trained():
    demo = dataclasses.replace(TRANSFORMER, **read_description(DEMO_FOLDER)[1]['transformer'])
    for config, rank in ((PRESETS['2b'], 16), (PRESETS['2b'], 28), (demo, 2)):
        share = size(boxed(config, LoraConfig(rank=rank))) / size(transformer_shapes(config))
        assert 0.002 < share < 0.02


def test_adapters_are_split_as_their_kernels():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    adapters = boxed(TRANSFORMER, LoraConfig(rank=4))
    specs = jax.tree.map(lambda s: tuple(s.spec), shardings_of(adapters, mesh))
    assert specs['ffn']['up'] == {'a': (None, 'fsdp', None), 'b': (None, None, 'tensor')}
    assert specs['ffn']['down'] == {'a': (None, 'tensor', None), 'b': (None, None, 'fsdp')}
