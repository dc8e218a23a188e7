"""Damaged tensors are refused by name, in model folders, adapters and after conversion."""

import dataclasses
import json
import pathlib
import re
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import tiny
from helpers.models import model_of

from infinity_jax.convert.importing import from_torch
from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.transformer.lora import LoraConfig
from infinity_jax.weights import integrity, weight_files
from infinity_jax.weights.adapter_file import load_adapter, save_adapter
from infinity_jax.weights.integrity import BLOCK, check_values, scan
from infinity_jax.weights.model_folder import LoadedModel, load_model, save_model
from infinity_jax.weights.safetensors_writer import SafetensorsWriter, Spec
from infinity_jax.weights.t5_folder import copy_encoder
from infinity_jax.weights.weight_files import open_safetensors

FILES = ('transformer.safetensors', 'tokenizer.safetensors', 'text_encoder/model.safetensors')
TEXT = tiny.TEXT.__class__(**{**vars(tiny.TEXT), 'vocab_size': 12})


@pytest.fixture
def folder(tmp_path):
    """A model folder of three parts, each with a tensor of several blocks or layers."""
    from infinity_jax.weights.t5_folder import encoder_shapes

    model = model_of(
        transformer_config=tiny.TRANSFORMER,
        transformer_params=tiny.transformer_variables()['params'],
        tokenizer_config=tiny.TOKENIZER,
        tokenizer_params=tiny.tokenizer_variables()['params'],
        text_config=TEXT,
        text_params=tiny.lively(encoder_shapes(TEXT)),
        schedule=ScaleSchedule.free(((1, 1), (2, 2))),
    )
    save_model(tmp_path / 'm', model)
    return tmp_path / 'm'


def largest(path: pathlib.Path) -> weight_files.SafeTensor:
    return max(open_safetensors(path).values(), key=lambda t: np.prod(t.shape))


def overwrite(path: pathlib.Path, start: int, content: bytes) -> None:
    with open(path, 'r+b') as file:
        file.seek(start)
        file.write(content)


def without_hashes(path: pathlib.Path) -> None:
    """Writes the file again as the safetensors library does, as in older folders."""
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, {'format': 'pt'})


@pytest.mark.parametrize('name', FILES)
def test_a_flipped_bit_is_refused_by_name(folder, name):
    tensor = largest(folder / name)
    whole = (folder / name).read_bytes()
    for bit in (0, 3, 6):
        place = tensor.start + 17 * bit
        overwrite(folder / name, place, bytes([whole[place] ^ 1 << bit]))
        with pytest.raises(UserError, match=rf'{name}: {tensor.name} is damaged: it has the hash'):
            load_model(folder)
        load_model(folder, verify=False)
        (folder / name).write_bytes(whole)
    load_model(folder)


@pytest.mark.parametrize('name', FILES)
def test_a_flipped_bit_in_a_copy_of_the_demo(name, tmp_path):
    folder = pathlib.Path(shutil.copytree(DEMO_FOLDER, tmp_path / 'demo'))
    assert all(tensor.hash for tensor in open_safetensors(folder / name).values())
    tensor = min(open_safetensors(folder / name).values(), key=lambda t: t.start)
    first = (folder / name).read_bytes()[tensor.start]
    overwrite(folder / name, tensor.start, bytes([first ^ 1]))
    with pytest.raises(UserError, match=rf'{name}: {re.escape(tensor.name)} is damaged'):
        load_model(folder)


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('old', [False, True])
def test_four_kilobytes_of_nan_are_refused_by_name(folder, name, old):
    if old:
        without_hashes(folder / name)
        load_model(folder)  # older folders have no hashes
    tensor = largest(folder / name)
    size = min(4096, 4 * int(np.prod(tensor.shape)))
    overwrite(folder / name, tensor.start, np.full(size // 4, np.nan, np.float32).tobytes())
    wanted = f'{tensor.name} holds NaN or infinite' if old else f'{tensor.name} is damaged'
    with pytest.raises(UserError, match=f'{name}: {wanted}'):
        load_model(folder)


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('old', [False, True])
def test_zeros_are_refused_by_name(folder, name, old):
    if old:
        without_hashes(folder / name)
    path = folder / name
    start = min(tensor.start for tensor in open_safetensors(path).values())
    overwrite(path, start, bytes(path.stat().st_size - start))
    with pytest.raises(UserError, match=f'{name}: (every value of .* is zero|.* is damaged)'):
        load_model(folder)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=f'{name}: not a whole safetensors file'):
        load_model(folder)


@pytest.mark.parametrize('mesh', [MeshConfig(data=4, fsdp=2), MeshConfig(data=1, fsdp=4, tensor=2)])
def test_shards_on_a_mesh_are_verified_and_each_byte_is_read_at_most_twice(
    folder, mesh, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        weight_files,
        'scan',
        lambda content, dtype: seen.append(len(content)) or scan(content, dtype),
    )
    read = weight_files.SafeTensor.read
    values = []

    def counted(tensor, index=()):
        array = read(tensor, index)
        values.append(array.nbytes)
        return array

    monkeypatch.setattr(weight_files.SafeTensor, 'read', counted)
    loaded = load_model(folder, mesh=make_mesh(mesh))
    plain = load_model(folder)
    trees = 'transformer_params', 'tokenizer_params', 'text_params'
    total = 0
    for name in trees:
        jax.tree.map(np.testing.assert_array_equal, getattr(loaded, name), getattr(plain, name))
        total += sum(leaf.nbytes for leaf in jax.tree.leaves(getattr(plain, name)))
    assert sum(seen) == 2 * total  # once for each of the two loads
    assert sum(values) == 2 * total
    tensor = largest(folder / FILES[0])
    overwrite(folder / FILES[0], tensor.start + 5, b'\x55')
    with pytest.raises(UserError, match=f'{tensor.name} is damaged'):
        load_model(folder, mesh=make_mesh(mesh))


def test_a_new_model_has_no_kernel_of_zeros(folder):
    from infinity_jax.training.config import init_key
    from infinity_jax.transformer.model import Transformer, init_transformer

    schedule = ScaleSchedule.free(((1, 1), (2, 2)))
    fresh = init_transformer(Transformer(tiny.TRANSFORMER), init_key(0), schedule)['params']
    configs = dataclasses.replace(load_model(folder).configs, text=None)
    save_model(folder, LoadedModel(configs, nn.unbox(fresh)))
    load_model(folder, parts=('transformer',))


def test_adapters(tmp_path):
    config = LoraConfig(rank=2, matrices=('ffn.up',))
    adapters = {'ffn': {'up': {'a': np.ones((2, 8, 2), 'f'), 'b': np.zeros((2, 2, 8), 'f')}}}
    path = tmp_path / 'adapter.safetensors'
    save_adapter(path, adapters, config)
    load_adapter(path)  # the second half begins at zero
    whole = path.read_bytes()
    for name, tensor in open_safetensors(path).items():
        overwrite(path, tensor.start + 3, b'\x20')
        with pytest.raises(UserError, match=f'adapter.safetensors: {name} is damaged'):
            load_adapter(path)
        path.write_bytes(whole)
    adapters['ffn']['up']['b'][0, 0, 0] = np.inf
    save_adapter(path, adapters, config)
    with pytest.raises(UserError, match='ffn.up.b holds NaN or infinite'):
        load_adapter(path)
    path.write_bytes(whole.replace(b'rank', b'rnak'))
    with pytest.raises(UserError):
        load_adapter(path)


def test_a_list_of_hashes_that_is_damaged(folder):
    path = folder / FILES[0]
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"hashes": "{', b'"hashes": "}', 1))
    with pytest.raises(UserError, match='its hashes are not one per tensor'):
        load_model(folder)


def test_layers_in_any_order_have_the_hash_of_the_whole(tmp_path):
    array = np.random.default_rng(0).standard_normal((3, BLOCK // 8 + 11)).astype(np.float32)
    specs = {'layers': Spec(array.shape, array.dtype), 'none': Spec((2, 0), array.dtype)}
    with SafetensorsWriter(tmp_path / 'x.safetensors', specs) as writer:
        for layer in (2, 0, 1):
            writer.write('layers', array[layer], layer)
        for layer in (0, 1):
            writer.write('none', np.zeros(0, np.float32), layer)
    with safetensors.safe_open(tmp_path / 'x.safetensors', 'numpy') as file:
        hashes = json.loads(file.metadata()['hashes'])
    assert hashes['layers'] == scan(integrity.byte_view(array), array.dtype).hash
    tensors = open_safetensors(tmp_path / 'x.safetensors')
    assert np.array_equal(tensors['layers'].read((1,)), array[1])
    assert tensors['none'].read().shape == (2, 0)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16', 'float64'])
def test_values_that_no_trained_tensor_has(dtype):
    dtype = np.dtype(jnp.dtype(dtype))
    good = np.linspace(-3, 3, 3 * BLOCK // 8).astype(dtype)
    assert check_values('x.kernel', good) is None
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[-1] = value
        assert check_values('x.bias', bad) == 'x.bias holds NaN or infinite values'
    zeros = np.zeros((2, 2), dtype)
    for array in (zeros, -zeros):
        assert check_values('x.kernel', array) == 'every value of x.kernel is zero'
        assert check_values('x.bias', array) is None
    assert check_values('x.kernel', zeros[:1, :1]) is None
    assert check_values('x.kernel', np.array([ml_dtypes.finfo(dtype).max], dtype)) is None
    assert check_values('x', np.zeros(3, np.int32)) is None


def test_the_text_encoder_is_copied_with_hashes(folder, tmp_path):
    copy_encoder(folder / 'text_encoder', tmp_path / 'copy')
    assert largest(tmp_path / 'copy' / 'model.safetensors').hash
    tensor = largest(folder / FILES[2])
    overwrite(folder / FILES[2], tensor.start, b'\x11\x11')
    with pytest.raises(UserError, match=f'{tensor.name} is damaged'):
        copy_encoder(folder / 'text_encoder', tmp_path / 'again')


def test_conversion_writes_hashes_and_refuses_nan(tmp_path):
    from infinity_jax.convert.exporting import to_torch_files

    to_torch_files(DEMO_FOLDER, tmp_path / 'torch', file_format='safetensors')
    tokenizer = tmp_path / 'torch' / 'tokenizer.safetensors'
    groups = {'tokenizer.norm_groups': 8}
    from_torch(tmp_path / 'm', tokenizer=tokenizer, overrides=groups)
    assert all(tensor.hash for tensor in open_safetensors(tokenizer).values())
    stored = open_safetensors(tmp_path / 'm' / 'tokenizer.safetensors')
    assert stored and all(tensor.hash for tensor in stored.values())
    arrays = safetensors.numpy.load_file(tokenizer)
    name = next(name for name in arrays if name.endswith('.weight'))
    arrays[name].flat[0] = np.nan
    safetensors.numpy.save_file(arrays, tokenizer)
    with pytest.raises(UserError, match=f'{name} holds NaN or infinite values'):
        from_torch(tmp_path / 'n', tokenizer=tokenizer, overrides=groups)
