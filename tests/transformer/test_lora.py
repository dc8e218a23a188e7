"""Adapters change the kernels they name by (alpha / rank) A B, and nothing else."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.tiny import SCHEDULE, TRANSFORMER, lively, text, transformer_variables
from jax.sharding import NamedSharding, PartitionSpec

from infinity_jax.config import PRESETS
from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.sharding import MeshConfig, make_mesh, shardings_of
from infinity_jax.transformer.int8 import quantize_kernels, quantize_on_devices
from infinity_jax.transformer.lora import (
    MATRICES,
    LoraConfig,
    attach,
    init_adapters,
    joined,
    merge,
    summed,
    updates_of,
)
from infinity_jax.transformer.model import Transformer, transformer_shapes
from infinity_jax.weights.model_folder import read_description

CONFIG = LoraConfig(rank=3, alpha=6.0)
ONE = NamedSharding(make_mesh(devices=jax.devices()[:1]), PartitionSpec())


def boxed(config, lora):
    shapes = transformer_shapes(config, boxed=True)
    return jax.eval_shape(lambda key: init_adapters(key, shapes, lora), jax.random.key(0))


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_merging_adds_the_scaled_product():
    base = transformer_variables()['params']
    adapters = lively(nn.unbox(boxed(TRANSFORMER, CONFIG)))
    merged = flatten_dict(merge(base, updates_of(adapters, CONFIG)), sep='.')
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
    merged = merge(base, updates_of(adapters, CONFIG))
    jax.tree.map(np.testing.assert_array_equal, merged, base)


def test_joined_parts():
    base = transformer_variables()['params']
    adapters = lively(nn.unbox(boxed(TRANSFORMER, CONFIG)))
    parts = joined({'transformer': base, 'text': 1}, {'lora': adapters}, CONFIG)
    assert set(parts) == {'transformer', 'text'}
    up = parts['transformer']['blocks']['ffn']['up']
    assert up['kernel'] is base['blocks']['ffn']['up']['kernel']
    np.testing.assert_array_equal(up['lora_a'], adapters['ffn']['up']['a'])
    np.testing.assert_array_equal(up['lora_b'], 2.0 * adapters['ffn']['up']['b'])
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
        ({'base_dtype': 'int4'}, "lora.base_dtype is 'int4'; wanted float32, bfloat16, int8"),
        ({'base_dtype': 'int8'}, "lora.base_dtype is 'int8' but lora.rank is 0, .*; set lora.rank"),
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


# ---- attached and merged


def two_updates():
    """Adapters of all matrices, and of some with another rank."""
    some = LoraConfig(rank=2, alpha=1.0, matrices=('ffn.up', 'self_attention'))
    return [
        updates_of(lively(nn.unbox(boxed(TRANSFORMER, CONFIG)), seed=1), CONFIG, 0.5),
        updates_of(lively(nn.unbox(boxed(TRANSFORMER, some)), seed=2), some, -1.0),
    ]


@functools.partial(jax.jit, static_argnames='dtype')
def forward(params, dtype='float32'):
    config = dataclasses.replace(TRANSFORMER, dtype=dtype)
    text_BTE, lengths_B = text()
    inputs = jnp.asarray(np.random.default_rng(3).standard_normal((3, SCHEDULE.num_tokens - 1, 4)))
    variables = {'params': params}
    model = Transformer(config)
    return model.apply(variables, text_BTE, lengths_B, inputs.astype('float32'), SCHEDULE)


def host(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.numeric
def test_attached_adapters_give_the_logits_of_merged_ones():
    base, updates = host(transformer_variables()['params']), summed(two_updates())
    assert updates['ffn.up'].a.shape[2] == 5 and updates['ffn.down'].a.shape[2] == 3
    merged = base
    for each in two_updates():
        merged = merge(merged, each)
    logits = forward(merged)
    np.testing.assert_allclose(forward(merge(base, updates)), logits, atol=2e-5)
    np.testing.assert_allclose(forward(attach(base, updates)), logits, atol=2e-5)
    assert np.abs(forward(base) - logits).max() > 0.1


def restored(quantized):
    """Parameters with the kernels that 8 bits stand for."""
    flat = flatten_dict(quantized, sep='.')
    for name in MATRICES:
        scale = flat.pop(f'blocks.{name}.kernel_scale')
        flat[f'blocks.{name}.kernel'] = flat[f'blocks.{name}.kernel'] * scale[:, None]
    return unflatten_dict(flat, sep='.')


@pytest.mark.numeric
def test_attached_adapters_of_an_8_bit_base():
    updates = summed(two_updates())
    quantized = quantize_kernels(host(transformer_variables()['params']))
    wanted = forward(merge(restored(quantized), updates))
    np.testing.assert_allclose(forward(attach(quantized, updates)), wanted, atol=2e-5)
    on_devices = quantize_on_devices(jax.device_put(transformer_variables()['params'], ONE))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), on_devices, quantized)


@pytest.mark.numeric
def test_gradients_of_adapters_are_those_through_the_merged_kernel():
    quantized = quantize_kernels(host(transformer_variables()['params']))
    updates = summed(two_updates())

    def through_sum(updates):
        flat = flatten_dict(restored(quantized), sep='.')
        for name, (a, b) in updates.items():
            flat[f'blocks.{name}.kernel'] += jnp.einsum('lir,lro->lio', a, b, precision='highest')
        return jnp.square(forward(unflatten_dict(flat, sep='.'))).sum()

    ours = jax.grad(lambda updates: jnp.square(forward(attach(quantized, updates))).sum())(updates)
    wanted = jax.grad(through_sum)(updates)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(b).max())


@pytest.mark.numeric
def test_adapters_in_bfloat16():
    base, updates = host(transformer_variables()['params']), summed(two_updates())
    logits = forward(merge(base, updates))
    error = forward(attach(base, updates), 'bfloat16') - logits
    rounded = forward(merge(base, updates), 'bfloat16') - logits
    assert np.square(error).mean() < 2 * np.square(rounded).mean()
