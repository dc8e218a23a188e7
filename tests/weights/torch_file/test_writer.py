""".pth files written without torch."""

import zipfile

import ml_dtypes
import numpy as np
import pytest

from infinity_jax.weights.safetensors_writer import Spec
from infinity_jax.weights.torch_file.reader import read_torch_file
from infinity_jax.weights.torch_file.writer import ALIGNMENT, TorchWriter

RNG = np.random.default_rng(0)
ARRAYS = {
    'matrix': RNG.standard_normal((3, 4, 5)).astype(np.float32),
    'numbers': np.arange(7),
    'brain': RNG.standard_normal((2, 2)).astype(ml_dtypes.bfloat16),
    'half': RNG.standard_normal(70_000).astype(np.float16),
    'scalar': np.float32(3).reshape(()),
}
SPECS = {name: Spec(array.shape, array.dtype) for name, array in ARRAYS.items()}


def write(path, under=(), names=tuple(ARRAYS)):
    with TorchWriter(path, SPECS, under) as writer:
        for name in names:
            writer.write(name, ARRAYS[name])


@pytest.mark.parametrize('under', [(), ('vae',), ('trainer', 'gpt_fsdp')])
def test_comes_back(tmp_path, under):
    write(tmp_path / 'x.pth', under, names=tuple(reversed(ARRAYS)))
    found = read_torch_file(tmp_path / 'x.pth')
    for key in under:
        assert list(found) == [key]
        found = found[key]
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].read().tobytes() == array.tobytes(), name


def test_elements_are_aligned_and_stored_as_they_are(tmp_path):
    write(tmp_path / 'x.pth')
    with zipfile.ZipFile(tmp_path / 'x.pth') as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            with open(tmp_path / 'x.pth', 'rb') as file:
                file.seek(info.header_offset + 26)
                lengths = np.frombuffer(file.read(4), '<u2').astype(int)
            assert (info.header_offset + 30 + lengths.sum()) % ALIGNMENT == 0


def test_a_forgotten_tensor_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match='never written: half'):
        write(tmp_path / 'x.pth', names=('matrix', 'numbers', 'brain', 'scalar'))


def test_torch_reads_it(tmp_path):
    torch = pytest.importorskip('torch')
    write(tmp_path / 'x.pth', ('vae',))
    for mapped in (False, True):
        found = torch.load(tmp_path / 'x.pth', weights_only=True, mmap=mapped)['vae']
        for name, array in ARRAYS.items():
            assert np.array_equal(found[name].double().numpy(), array.astype(np.float64)), name
