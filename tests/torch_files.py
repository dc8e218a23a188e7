"""Writes `.pth` files as torch does, without torch."""

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


def write_pth(path, content, compression=zipfile.ZIP_STORED, name='archive'):
    """Writes nested dicts and lists whose arrays become tensors."""
    modules = {'torch': types.ModuleType('torch'), 'torch._utils': types.ModuleType('torch._utils')}

    def function(module, name):
        made = types.FunctionType((lambda *_: None).__code__, {}, name)
        made.__module__, made.__qualname__ = module, name
        setattr(modules[module], name, made)

    function('torch._utils', '_rebuild_tensor_v2')
    for storage in STORAGES.values():
        function('torch', storage)
    flats = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, _Storage):
                return None
            key = str(flats.setdefault(id(value.flat), (len(flats), value.flat))[0])
            tag = getattr(modules['torch'], STORAGES[value.flat.dtype.name])
            return 'storage', tag, key, 'cpu', value.flat.size

    def wrap(value):
        if isinstance(value, dict):
            return type(value)((k, wrap(v)) for k, v in value.items())
        return Stored.of(value) if isinstance(value, np.ndarray) else value

    before = {n: sys.modules.get(n) for n in modules}
    sys.modules.update(modules)
    try:
        with zipfile.ZipFile(path, 'w', compression) as archive:
            with archive.open(f'{name}/data.pkl', 'w') as stream:
                Pickler(stream, protocol=2).dump(wrap(content))
            archive.writestr(f'{name}/byteorder', 'little')
            for number, flat in flats.values():
                archive.writestr(f'{name}/data/{number}', flat.tobytes())
    finally:
        for n, module in before.items():
            sys.modules.pop(n) if module is None else sys.modules.update({n: module})


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
