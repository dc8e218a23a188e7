"""Writes PyTorch `.pth` files without torch, tensor by tensor.

The file is a zip with a pickle that rebuilds the tensors and one uncompressed member per tensor.
The pickle is written by hand, since the pickle module would import torch.
"""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np

from infinity_jax.weights.safetensors_writer import Spec, raw_bytes
from infinity_jax.weights.torch_file.unpickler import STORAGE_DTYPES

ALIGNMENT = 64  # bytes: where torch puts the elements, so that it can map them into memory
_STORAGES = {np.dtype(dtype): name for name, dtype in STORAGE_DTYPES.items()}


class TorchWriter:
    """Writes a `.pth` file that `torch.load(weights_only=True)` reads; a context manager.

    Args:
      path: overwritten.
      specs: tensor name -> shape and dtype; all must be written before the end.
      under: keys of the dictionaries around the state dict, outermost first.
    """

    def __init__(self, path: Path, specs: Mapping[str, Spec], under: tuple[str, ...] = ()):
        self._specs = dict(specs)
        self._member = {name: f'data/{i}' for i, name in enumerate(specs)}
        self._stem = path.stem
        self._zip = zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED)
        self._add('data.pkl', _pickled(specs, under))
        self._add('byteorder', b'little')

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes a tensor. Each must be written exactly once."""
        spec = self._specs.pop(name)
        assert array.shape == spec.shape and array.dtype == spec.dtype, (name, array.shape)
        self._add(self._member[name], raw_bytes(array))

    def _add(self, name: str, content: bytes | memoryview) -> None:
        info = zipfile.ZipInfo(f'{self._stem}/{name}')
        # The local header is 30 bytes, the name and an extra field, which the 64-bit sizes (20
        # bytes) and our padding share; `force_zip64` makes their length known beforehand.
        assert self._zip.fp is not None  # until it is closed
        start = self._zip.fp.tell() + 30 + len(info.filename.encode()) + 20 + 4
        padding = -start % ALIGNMENT
        info.extra = struct.pack('<2sH', b'FB', padding) + b'\0' * padding
        with self._zip.open(info, 'w', force_zip64=True) as member:
            member.write(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *unused) -> None:
        if kind is None:
            assert not self._specs, f'never written: {", ".join(self._specs)}'
            self._add('version', b'3\n')
        self._zip.close()


def _pickled(specs: Mapping[str, Spec], under: tuple[str, ...]) -> bytes:
    """The pickle of an OrderedDict of tensors, inside plain dicts."""
    out = [pickle.PROTO + b'\x02']
    for key in under:
        out += [pickle.EMPTY_DICT, _text(key)]
    out += [_ordered_dict(), pickle.MARK]
    for number, (name, spec) in enumerate(specs.items()):
        elements = int(np.prod(spec.shape, dtype=np.int64))
        strides = np.cumprod((1, *spec.shape[:0:-1]))[::-1].tolist() if spec.shape else []
        storage = (
            _text('storage') + _global('torch', _STORAGES[spec.dtype]) + _text(str(number))
            + _text('cpu') + _integer(elements)
        )  # fmt: skip
        out += [
            _text(name),
            _global('torch._utils', '_rebuild_tensor_v2'),
            pickle.MARK,
            pickle.MARK + storage + pickle.TUPLE + pickle.BINPERSID,
            _integer(0),
            _integers(spec.shape),
            _integers(strides),
            pickle.NEWFALSE,  # requires_grad
            _ordered_dict(),  # hooks: none
            pickle.TUPLE + pickle.REDUCE,
        ]
    out += [pickle.SETITEMS, pickle.SETITEM * len(under), pickle.STOP]
    return b''.join(out)


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _ordered_dict() -> bytes:
    return _global('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE


def _text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack('<I', len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 2**31:
        return pickle.BININT + struct.pack('<i', value)
    return pickle.LONG1 + b'\x08' + struct.pack('<q', value)


def _integers(values) -> bytes:
    return pickle.MARK + b''.join(map(_integer, values)) + pickle.TUPLE
