"""Weights reach the devices in their dtypes and shards."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_of
from helpers.tiny import (
    TEXT,
    TOKENIZER,
    TRANSFORMER,
    lively,
    tokenizer_variables,
    transformer_variables,
)
from jax.sharding import PartitionSpec

from infinity_jax.config import ModelConfigs
from infinity_jax.errors import UserError
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.weights.model_folder import read_configs, save_model
from infinity_jax.weights.placement import (
    device_dtype,
    hold,
    place,
    share_batch,
    with_text_dtype,
)
from infinity_jax.weights.t5_folder import encoder_shapes

PARTS = {
    'transformer': (TRANSFORMER, lambda: transformer_variables()['params']),
    'tokenizer': (TOKENIZER, lambda: tokenizer_variables()['params']),
    'text': (
        dataclasses.replace(TEXT, vocab_size=16),
        lambda: lively(encoder_shapes(dataclasses.replace(TEXT, vocab_size=16))),
    ),
}


@functools.cache
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def on_host(params):
    return jax.tree.map(np.asarray, params)


def test_kernels_of_blocks_alone_leave_float32():
    placed = place(on_host(transformer_variables()['params']), 'bfloat16', TRANSFORMER)
    narrow = {
        jax.tree_util.keystr(path, simple=True, separator='/')
        for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
        if leaf.dtype == jnp.bfloat16
    }
    assert narrow == {
        f'blocks/{name}/kernel'
        for name in (
            'self_attention/qkv',
            'self_attention/out',
            'cross_attention/query',
            'cross_attention/key_value',
            'cross_attention/out',
            'ffn/up',
            'ffn/down',
        )
    }
    others = [x.dtype for x in jax.tree.leaves(placed) if x.dtype != jnp.bfloat16]
    assert set(others) == {jnp.dtype('float32')}


def test_islands_stored_in_16_bits_become_float32():
    stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16), transformer_variables()['params'])
    placed = place(stored, 'bfloat16', TRANSFORMER)
    assert placed['blocks']['modulation_table'].dtype == jnp.float32
    assert placed['head']['kernel'].dtype == jnp.float32
    assert placed['blocks']['ffn']['up']['kernel'].dtype == jnp.bfloat16


def test_what_is_held_is_what_would_be_placed():
    config, params = PARTS['text'][0], PARTS['text'][1]()
    held, placed = hold(params, 'bfloat16'), place(params, 'bfloat16', config)
    assert held['layers']['query']['kernel'].dtype == jnp.bfloat16
    assert held['token_embedding'].dtype == np.float32
    for ours, wanted in zip(jax.tree.leaves(held), jax.tree.leaves(placed), strict=True):
        assert isinstance(ours, np.ndarray) and ours.dtype == wanted.dtype
        np.testing.assert_array_equal(ours, wanted)


def test_device_dtype_goes_by_the_path():
    assert device_dtype(('blocks', 'ffn', 'up', 'kernel'), 'bfloat16') == jnp.bfloat16
    assert device_dtype(('blocks', 'ffn', 'up', 'bias'), 'bfloat16') == np.float32
    assert device_dtype(('head', 'kernel'), 'bfloat16') == np.float32


@pytest.mark.parametrize('part', PARTS)
def test_a_mesh_splits_parameters_by_their_axes(part):
    config, params = PARTS[part][0], on_host(PARTS[part][1]())
    placed = place(params, 'float32', config, mesh())
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(placed))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed))
    if part == 'transformer':
        kernel = placed['blocks']['self_attention']['qkv']['kernel']
        assert kernel.sharding.spec == PartitionSpec(None, 'fsdp', 'tensor')


def test_arrays_on_the_mesh_stay_where_they_are():
    params = place(on_host(PARTS['transformer'][1]()), 'float32', TRANSFORMER, mesh())
    again = place(params, 'float32', TRANSFORMER, mesh())

    def pointers(tree):
        return [s.data.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) for s in shards(x)]

    def shards(leaf):
        return leaf.addressable_shards

    assert pointers(again) == pointers(params)
    narrow = place(params, 'bfloat16', TRANSFORMER, mesh())
    kernel = narrow['blocks']['ffn']['up']['kernel']
    assert kernel.dtype == jnp.bfloat16
    assert kernel.sharding.spec == params['blocks']['ffn']['up']['kernel'].sharding.spec


def test_arrays_on_one_device_go_to_the_mesh():
    placed = place(PARTS['transformer'][1](), 'float32', TRANSFORMER, mesh())
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(placed))


def test_a_batch_is_split_over_data_and_fsdp():
    rows = share_batch(np.arange(8), mesh())
    assert rows.sharding.shard_shape((8,)) == (2,)
    assert len(share_batch(np.arange(8), None).sharding.device_set) == 1


def test_configurations_are_read_without_weights(tmp_path):
    loaded = model_of(
        transformer_config=TRANSFORMER,
        transformer_params=PARTS['transformer'][1](),
        tokenizer_config=TOKENIZER,
        tokenizer_params=PARTS['tokenizer'][1](),
        extra={'kept': 1},
    )
    save_model(tmp_path / 'm', loaded)
    for name in ('transformer', 'tokenizer'):
        (tmp_path / 'm' / f'{name}.safetensors').unlink()
    read = read_configs(tmp_path / 'm')
    assert read.transformer == TRANSFORMER and read.tokenizer == TOKENIZER
    assert read.text is None and read.extra == {'kept': 1}


def test_parts_that_do_not_fit_are_refused_before_they_are_read(tmp_path):
    config = dataclasses.replace(TOKENIZER, bits=6)
    loaded = model_of(
        transformer_config=TRANSFORMER,
        transformer_params=PARTS['transformer'][1](),
        tokenizer_config=config,
        tokenizer_params=tokenizer_variables(config)['params'],
    )
    save_model(tmp_path / 'm', loaded)
    with pytest.raises(UserError, match='4 bits, the tokenizer has 6'):
        read_configs(tmp_path / 'm')


@pytest.mark.parametrize(
    ('own', 'asked', 'platform', 'dtype'),
    [
        ('bfloat16', '', 'gpu', 'float16'),
        ('bfloat16', '', 'tpu', 'bfloat16'),
        ('bfloat16', '', 'cpu', 'bfloat16'),
        ('float32', '', 'gpu', 'float32'),
        ('bfloat16', 'float32', 'gpu', 'float32'),
        ('float32', 'float16', 'cpu', 'float16'),
    ],
)
def test_the_text_encoder_has_the_closer_dtype_where_the_device_has_it(own, asked, platform, dtype):
    configs = ModelConfigs(dataclasses.replace(TRANSFORMER, dtype=own))
    chosen = with_text_dtype(configs, asked, platform)
    assert chosen.text_products == dtype
    assert with_text_dtype(chosen, platform='tpu') == chosen  # decided once
