import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import QUICK_COMPILE, SCHEDULE, TRANSFORMER, text, transformer_variables
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec

from infinity_jax.config import PRESETS, TextConfig, TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.sharding import (
    GPU_OPTIONS,
    RULES,
    TPU_GENERATION_OPTIONS,
    TPU_OPTIONS,
    MeshConfig,
    batch_sharding,
    compiler_options,
    constrain,
    device_grid,
    generation_compiler_options,
    init_sharded,
    make_mesh,
    replicated,
    shardings_of,
)
from infinity_jax.training.optimizer import OptimizerConfig, make_optimizer, new_state
from infinity_jax.training.transformer.loss import bit_loss
from infinity_jax.transformer.model import Transformer, init_transformer
from infinity_jax.weights.part_weights import part_shapes
from infinity_jax.weights.t5_folder import encoder_shapes

MESHES = [
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=4, tensor=2),
    MeshConfig(data=2, sequence=4),  # 27 tokens are filled up to 28
    MeshConfig(data=1, fsdp=2, tensor=2, sequence=2),
]


def init():
    return functools.partial(init_transformer, Transformer(TRANSFORMER), schedule=SCHEDULE)


def shardings(mesh):
    return shardings_of(jax.eval_shape(init(), jax.random.key(0)), mesh)


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((8, SCHEDULE.num_tokens - 1, 4)).astype(np.float32)
    targets = rng.random((8, SCHEDULE.num_tokens, 4)) > 0.5
    return (*text(8), inputs, targets)


@functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
@jax.value_and_grad
def loss_of(variables, batch):
    logits = Transformer(TRANSFORMER).apply(variables, *batch[:3], SCHEDULE)
    return bit_loss(logits, batch[3], SCHEDULE)[0]


@functools.cache
def on_one_device():
    return jax.device_get(loss_of(transformer_variables(), batch()))


def test_there_are_eight_devices():
    assert jax.device_count() == 8


def test_one_device_is_a_mesh_of_one():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {'data': 1, 'fsdp': 1, 'tensor': 1, 'sequence': 1}


def test_minus_one_is_the_number_of_remaining_devices():
    assert dict(make_mesh().shape)['data'] == 8
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2, 'sequence': 1}


@pytest.mark.parametrize(
    'config',
    [
        MeshConfig(data=3),
        MeshConfig(data=4),
        MeshConfig(data=16),
        MeshConfig(data=-1, fsdp=3),
    ],
)
def test_a_mesh_that_does_not_cover_the_devices_is_a_user_error(config):
    with pytest.raises(UserError, match='does not cover 8 devices') as error:
        make_mesh(config)
    assert f"'tensor': {config.tensor}" in str(error.value)


@pytest.mark.parametrize(
    ('axes', 'message'),
    [
        ({'data': 0}, 'config field mesh.data is 0; wanted a whole number from 1 to 1048576'),
        ({'tensor': -5}, 'config field mesh.tensor is -5; wanted'),
        ({'fsdp': -1}, 'config field mesh.data and fsdp are -1, .*; wanted one -1 at most'),
    ],
)
def test_axes_that_fit_no_number_of_devices(axes, message):
    with pytest.raises(UserError, match=message):
        MeshConfig(**axes)


def test_the_advice_names_an_axis_that_fits_as_it_is_set():
    config = MeshConfig(data=3, tensor=-1)
    with pytest.raises(UserError, match='at most one of them -1: --config.mesh.data=1 does$'):
        make_mesh(config)
    with pytest.raises(UserError, match='at most one of them -1: data=1 in --mesh does$'):
        make_mesh(config, setting='{} in --mesh')
    assert make_mesh(MeshConfig(data=1, tensor=-1)).shape['tensor'] == 8


def test_rules_name_mesh_axes_and_each_logical_axis_once():
    names = [name for name, _ in RULES]
    assert len(names) == len(set(names))
    groups = [(axes,) if isinstance(axes, str) else axes or () for _, axes in RULES]
    used = {axis for axes in groups for axis in axes}
    assert used == set(make_mesh().shape)


def test_every_logical_axis_of_the_model_is_in_the_table():
    specs = nn.get_partition_spec(jax.eval_shape(init(), jax.random.key(0)))
    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    assert {a for spec in leaves for a in spec if a} <= {name for name, _ in RULES}


def test_large_parameters_are_split_and_their_parts_fit():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = shardings(mesh)['params']
    qkv = params['blocks']['self_attention']['qkv']['kernel']
    assert qkv.spec == PartitionSpec(None, 'fsdp', 'tensor')
    assert qkv.shard_shape((2, 32, 96)) == (2, 16, 48)
    down = params['blocks']['ffn']['down']['kernel']
    assert down.spec == PartitionSpec(None, 'tensor', 'fsdp')
    bias = params['blocks']['self_attention']['query_bias']
    assert bias.spec == PartitionSpec(None, 'fsdp')
    assert params['blocks']['self_attention']['log_scale'].is_fully_replicated


def test_an_axis_that_does_not_divide_its_dimension_splits_another():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    shape = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((12, 16), jnp.float32), ('embed', 'mlp'))
    assert shardings_of({'w': shape}, mesh)['w'].spec == PartitionSpec(None, 'fsdp')
    neither = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((12, 9), jnp.float32), ('embed', None))
    assert shardings_of({'w': neither}, mesh)['w'].is_fully_replicated
    fits = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((16, 12), jnp.float32), ('embed', 'mlp'))
    assert shardings_of({'w': fits}, mesh)['w'].spec[0] == 'fsdp'


def test_parameters_are_born_in_their_shards_with_the_values_of_one_device():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    variables = init_sharded(init(), mesh, jax.random.key(0))
    quick = jax.jit(init(), compiler_options=QUICK_COMPILE)
    single = nn.unbox(quick(jax.random.key(0)))
    assert jax.tree.structure(variables) == jax.tree.structure(single)
    for ours, wanted in zip(jax.tree.leaves(variables), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-7)
    kernel = variables['params']['blocks']['ffn']['up']['kernel']
    assert kernel.sharding.spec == PartitionSpec(None, 'fsdp', 'tensor')
    assert {s.data.shape for s in kernel.addressable_shards} == {(2, 16, 128)}


@pytest.mark.parametrize('config', MESHES, ids=str)
def test_eight_devices_give_the_loss_and_gradients_of_one(config):
    mesh = make_mesh(config)
    variables = jax.device_put(transformer_variables(), shardings(mesh))
    spread = jax.device_put(batch(), batch_sharding(mesh))
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        loss, gradients = loss_of(variables, spread)
    assert len(loss.sharding.device_set) == 8
    np.testing.assert_allclose(loss, on_one_device()[0], rtol=1e-5)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(on_one_device()[1]))

    def compare(ours, wanted):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5 * largest)

    jax.tree.map(compare, gradients, on_one_device()[1])


@pytest.mark.parametrize('fsdp', [8, 256])
@pytest.mark.parametrize('name', ['2b', '8b'])
def test_nothing_large_is_whole_on_a_device(name, fsdp):
    mesh = AbstractMesh((2, fsdp, 1, 1), ('data', 'fsdp', 'tensor', 'sequence'))
    config, optimizer = PRESETS[name], make_optimizer(OptimizerConfig(learning_rate=1e-4), 10)

    def start(key):
        variables = init_transformer(Transformer(config), key, SCHEDULE)
        return new_state(variables['params'], optimizer)

    boxed = {
        'state': jax.eval_shape(start, jax.random.key(0)),
        'tokenizer': part_shapes(TokenizerConfig(bits=config.bits), boxed=True),
        'text': encoder_shapes(TextConfig(), boxed=True),
    }
    assert boxed['state'].opt_state and boxed['state'].ema
    whole = [
        (jax.tree_util.keystr(path), shape.shape)
        for (path, sharding), shape in zip(
            jax.tree.leaves_with_path(shardings_of(boxed, mesh)),
            jax.tree.leaves(nn.unbox(boxed)),
            strict=True,
        )
        if sharding.is_fully_replicated and shape.size * shape.dtype.itemsize > 2**20
    ]
    assert not whole


def fake_devices(slices, each, platform='cpu'):
    devices = [
        types.SimpleNamespace(
            id=i, platform=platform, device_kind='fake', process_index=0, slice_index=i % slices
        )
        for i in range(slices * each)
    ]
    return np.array(devices)


def test_slices_lie_along_the_data_axis():
    sizes = {'data': 4, 'fsdp': 4, 'tensor': 1, 'sequence': 1}
    grid = device_grid(sizes, fake_devices(2, 8))
    assert grid.shape == (4, 4, 1, 1) and len({d.id for d in grid.flat}) == 16
    of_copy = [{d.slice_index for d in row.flat} for row in grid]
    assert of_copy == [{0}, {0}, {1}, {1}]


def test_a_copy_of_the_parameters_does_not_span_tpu_slices():
    sizes = {'data': 1, 'fsdp': 16, 'tensor': 1, 'sequence': 1}
    with pytest.raises(UserError, match='mesh.data is 1 on 2 TPU slices; make it a multiple of 2'):
        device_grid(sizes, fake_devices(2, 8, 'tpu'))
    assert device_grid(sizes, fake_devices(2, 8, 'gpu')).shape == (1, 16, 1, 1)


def test_constrain_places_activations_only_under_a_mesh():
    x = jnp.zeros((8, 4, 6))
    assert constrain(x, 'batch', 'length', None) is x
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, sequence=2))

    def placed(x):
        with jax.set_mesh(mesh):
            return jax.jit(lambda x: constrain(x, 'batch', 'length', None))(x).sharding

    assert placed(x).shard_shape(x.shape) == (2, 2, 6)
    odd = jnp.zeros((8, 5, 6))
    assert placed(odd).shard_shape(odd.shape)[1] == 5


def test_replicated_is_whole_everywhere():
    assert replicated(make_mesh()).is_fully_replicated


def test_training_has_options_by_platform():
    def deviceless(platform):
        device = AbstractDevice(device_kind='some', num_cores=1, platform=platform)
        return AbstractMesh((1,), ('data',), abstract_device=device)

    assert compiler_options(make_mesh()) is None
    assert compiler_options(AbstractMesh((1,), ('data',))) is None
    options = [compiler_options(deviceless(name)) for name in ('cpu', 'gpu', 'tpu')]
    assert options == [None, GPU_OPTIONS, TPU_OPTIONS]


def test_generation_has_options_by_chip():
    def on(kind, platform='tpu'):
        device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
        mesh = AbstractMesh((1,), ('data',), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            return generation_compiler_options()

    assert generation_compiler_options() is None
    assert on('TPU v5 lite') == TPU_GENERATION_OPTIONS['v5e'] != on('TPU v5')
    assert on('TPU v5') == TPU_GENERATION_OPTIONS['v5p']
    assert on('TPU v6 lite') == TPU_GENERATION_OPTIONS['v6e']
    assert on('TPU v4') is None
    assert on('NVIDIA H100 80GB HBM3', 'gpu') == on('an unknown card', 'gpu') == GPU_OPTIONS
