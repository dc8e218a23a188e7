"""Writes `.pth` files as torch does, without torch, and compares what was read with arrays."""

import contextlib
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np

STORAGES = {
    'float32': 'FloatStorage',
    'float64': 'DoubleStorage',
    'float16': 'HalfStorage',
    'bfloat16': 'BFloat16Storage',
    'int64': 'LongStorage',
    'bool': 'BoolStorage',
}


class Stored:
    """A tensor to write: elements of a flat array seen through offset, shape and strides."""

    def __init__(self, flat, offset, shape, strides):
        self.flat, self.offset, self.shape, self.strides = flat, offset, shape, strides

    @classmethod
    def of(cls, array):
        strides = tuple(s // array.itemsize for s in np.empty(array.shape, array.dtype).strides)
        return cls(np.ascontiguousarray(array).ravel(), 0, array.shape, strides)

    def __reduce__(self):
        rebuild = sys.modules['torch._utils']._rebuild_tensor_v2
        arguments = (_Storage(self.flat), self.offset, self.shape, self.strides)
        return rebuild, (*arguments, False, OrderedDict())


class _Storage:
    def __init__(self, flat):
        self.flat = flat


@contextlib.contextmanager
def _torch_in_name():
    """Lets pickles name what torch has."""
    modules = {'torch': types.ModuleType('torch'), 'torch._utils': types.ModuleType('torch._utils')}

    def function(module, name):
        made = types.FunctionType((lambda *_: None).__code__, {}, name)
        made.__module__, made.__qualname__ = module, name
        setattr(modules[module], name, made)

    function('torch._utils', '_rebuild_tensor_v2')
    for storage in STORAGES.values():
        function('torch', storage)
    before = {n: sys.modules.get(n) for n in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for n, module in before.items():
            sys.modules.pop(n) if module is None else sys.modules.update({n: module})


def _dump(stream, content, *view):
    """Pickles nested dicts whose arrays become tensors; gives key -> flat array.

    `view` ends the persistent ids.
    """
    flats = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, _Storage):
                return None
            key = str(flats.setdefault(id(value.flat), (len(flats), value.flat))[0])
            tag = getattr(sys.modules['torch'], STORAGES[value.flat.dtype.name])
            return 'storage', tag, key, 'cpu', value.flat.size, *view

    def wrap(value):
        if isinstance(value, dict):
            return type(value)((k, wrap(v)) for k, v in value.items())
        return Stored.of(value) if isinstance(value, np.ndarray) else value

    with _torch_in_name():
        Pickler(stream, protocol=2).dump(wrap(content))
    return {str(number): flat for number, flat in flats.values()}


def write_pth(path, content, compression=zipfile.ZIP_STORED, name='archive'):
    """Writes nested dicts whose arrays become tensors."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        with archive.open(f'{name}/data.pkl', 'w') as stream:
            flats = _dump(stream, content)
        archive.writestr(f'{name}/byteorder', 'little')
        for key, flat in flats.items():
            archive.writestr(f'{name}/data/{key}', flat.tobytes())


MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
C_TYPES = {'protocol_version': VERSION, 'little_endian': True, 'type_sizes': {'int': 4, 'long': 4}}


def write_legacy_pth(path, content, magic=MAGIC, version=VERSION, keys=None, counts=(), view=None):
    """The same in the layout before torch 1.6; `keys` and `counts` (key -> elements) may lie."""
    with open(path, 'wb') as stream:
        for head in (magic, version, C_TYPES):
            pickle.dump(head, stream, protocol=2)
        flats = _dump(stream, content, view)
        pickle.dump(sorted(flats) if keys is None else keys, stream, protocol=2)
        for key in sorted(flats):
            stream.write(dict(counts).get(key, flats[key].size).to_bytes(8, 'little'))
            stream.write(flats[key].tobytes())


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def arrays_of_every_dtype(*shape):
    """Name -> random array, for each dtype that torch files have."""
    rng = np.random.default_rng(0)
    dtypes = ['float32', 'float64', 'float16', BFLOAT16, 'int64', 'bool']
    return {str(dtype): (rng.standard_normal(shape) * 5).astype(dtype) for dtype in dtypes}


def assert_reads(found, content):
    """Holds the tensors of a file, in order, to the arrays that were written."""
    assert list(found) == list(content)
    for name, array in content.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        read = found[name].read()
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def assert_same_files(tensors, others):
    """Equal names, shapes, dtypes and bytes; `others` are tensors of a file or arrays."""
    assert set(tensors) == set(others)
    for name, tensor in tensors.items():
        ours, theirs = (
            x if isinstance(x, np.ndarray) else x.read() for x in (tensor, others[name])
        )
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        assert ours.tobytes() == theirs.tobytes(), name
