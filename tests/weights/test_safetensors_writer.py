"""Safetensors written piece by piece are what the library reads."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from infinity_jax.weights.safetensors_writer import (
    SafetensorsWriter,
    ShardWriter,
    Spec,
    group_by_size,
    shard_names,
)
from infinity_jax.weights.weight_files import open_shards, open_weights

RNG = np.random.default_rng(0)
ARRAYS = {
    'half': RNG.standard_normal((3, 5)).astype(np.float16),
    'layers': RNG.standard_normal((4, 2, 3)).astype(np.float32),
    'scalar': np.array(2, np.float32),
    'numbers': np.arange(7),
    'brain': RNG.standard_normal(9).astype(ml_dtypes.bfloat16),
    'empty': np.zeros((0, 3), np.float32),
}
SPECS = {name: Spec(array.shape, array.dtype) for name, array in ARRAYS.items()}


def same(found):
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), name


def test_any_order_and_layer_by_layer(tmp_path):
    with SafetensorsWriter(tmp_path / 'x.safetensors', SPECS) as writer:
        for name in reversed(ARRAYS):
            if name == 'layers':
                for layer in (2, 0, 3, 1):
                    writer.write(name, ARRAYS[name][layer], layer)
            else:
                writer.write(name, ARRAYS[name])
    same(safetensors.numpy.load_file(tmp_path / 'x.safetensors'))


def test_not_contiguous(tmp_path):
    turned = ARRAYS['half'].T
    with SafetensorsWriter(tmp_path / 'x', {'t': Spec(turned.shape, turned.dtype)}) as writer:
        writer.write('t', turned)
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / 'x')['t'], turned)


def test_the_wrong_array_is_not_written(tmp_path):
    with pytest.raises(AssertionError):
        with SafetensorsWriter(tmp_path / 'x', SPECS) as writer:
            writer.write('half', ARRAYS['half'].astype(np.float32))


def test_a_forgotten_layer_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match='never written: layers'):
        with SafetensorsWriter(tmp_path / 'x', SPECS) as writer:
            for name in SPECS:
                if name != 'layers':
                    writer.write(name, ARRAYS[name])
            writer.write('layers', ARRAYS['layers'][0], 0)


@pytest.mark.parametrize(('limit', 'files'), [(10**9, 1), (150, 2), (1, len(ARRAYS))])
def test_shards(tmp_path, limit, files):
    with ShardWriter(tmp_path, 'part', SPECS, limit, 'index.json') as writer:
        for name, array in ARRAYS.items():
            writer.write(name, array)
    assert len(writer.names) == len(list(tmp_path.glob('part*.safetensors'))) == files
    same({n: t.read() for n, t in open_shards(tmp_path / 'index.json').items()})


def test_one_file_needs_no_index(tmp_path):
    with ShardWriter(tmp_path, 'part', {'s': SPECS['scalar']}) as writer:
        writer.write('s', ARRAYS['scalar'])
    assert [path.name for path in tmp_path.iterdir()] == ['part.safetensors']


def test_groups_and_names():
    assert group_by_size({'a': 6, 'b': 4, 'c': 1, 'd': 99, 'e': 1}, 10) == [
        ['a', 'b'],
        ['c'],
        ['d'],
        ['e'],
    ]
    assert shard_names('x.bin', 1) == ['x.bin']
    assert shard_names('x.bin', 2) == ['x-00001-of-00002.bin', 'x-00002-of-00002.bin']


def test_a_part_of_a_tensor(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / 'model.safetensors')
    layers = open_weights(tmp_path)['layers']
    for index in ((), (1,), (slice(1, 3),), (slice(None), slice(0, 1), slice(1, None))):
        assert np.array_equal(layers.read(index), ARRAYS['layers'][index]), index
