"""Reads PyTorch `.pth` files without torch and without running anything that they contain.

A `.pth` file is a zip with a pickle that describes the tensors and one member per storage. The
unpickler here knows the few names that plain state dicts need and refuses every other.
"""

import collections
import dataclasses
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from infinity_jax.config import UserError

STORAGE_DTYPES = {
    'FloatStorage': np.float32,
    'DoubleStorage': np.float64,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A flat run of elements inside the file."""

    archive: '_Archive'
    member: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class TorchTensor:
    """A tensor that is still on disk. `read()` gives it as a numpy array of its own."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def check_bounds(self, elements: int) -> None:
        """Raises `UserError` where it reaches outside a storage of so many elements."""
        if 0 in self.shape:
            return
        pairs = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((n - 1) * s for n, s in pairs)
        if min((self.offset, *self.shape, *self.strides)) < 0 or last >= elements:
            raise UserError(
                f'{self.storage.archive.path}: a tensor of shape {self.shape} reaches element '
                f'{last} of a storage of {elements}: the file is damaged, copy it again'
            )

    def read(self, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """Reads this tensor alone, or a part of it, contiguous and in row-major order."""
        flat = self.storage.archive.map(self.storage)
        # Again, beside when it was built: a pickle can change an object that it has built.
        self.check_bounds(flat.size)
        size = self.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :],
            self.shape,
            tuple(s * size for s in self.strides),
            writeable=False,
        )
        return np.array(view[index], order='C')


class _Archive:
    """The zip around the pickle; maps storages into memory where they are not compressed."""

    def __init__(self, path: Path):
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.members = {info.filename: info for info in archive.infolist()}

    def map(self, storage: _Storage) -> np.ndarray:
        """The storage's elements: a view of the mapped file, or a copy if it was compressed."""
        info = self.members[storage.member]
        if info.compress_type != zipfile.ZIP_STORED:
            with zipfile.ZipFile(self.path) as archive:
                return np.frombuffer(archive.read(info), storage.dtype, storage.size)
        with open(self.path, 'rb') as file:
            # The local header repeats name and extra field, with lengths of its own.
            file.seek(info.header_offset + 26)
            name_length, extra_length = struct.unpack('<HH', file.read(4))
        start = info.header_offset + 30 + name_length + extra_length
        if not storage.size:
            return np.empty(0, storage.dtype)
        return np.memmap(self.path, storage.dtype, 'r', start, (storage.size,))


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers and `TorchTensor`s; any other name is refused, not looked up."""

    def __init__(self, file, archive: _Archive, prefix: str):
        super().__init__(file, encoding='utf-8')
        self.archive = archive
        self.prefix = prefix

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('collections', 'OrderedDict'):
            return collections.OrderedDict
        if (module, name) == ('torch', 'Size'):
            return tuple
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return self._tensor
        if (module, name) == ('torch._utils', '_rebuild_parameter'):
            return lambda tensor, *unused: tensor
        if module in ('torch', 'torch.storage') and name in STORAGE_DTYPES:
            return name  # used as a plain tag in persistent_load
        raise UserError(
            f'{self.archive.path}: its pickle asks for {module}.{name}, which a file of plain '
            'tensors does not need; nothing was executed. Save the bare state dict instead'
        )

    def persistent_load(self, key: Any) -> _Storage:
        if not (isinstance(key, tuple) and len(key) == 5 and key[0] == 'storage'):
            raise UserError(
                f'{self.archive.path}: unknown persistent id {str(key)[:60]}; wanted a storage'
            )
        _, tag, name, _, size = key
        member = f'{self.prefix}data/{name}'
        dtype = np.dtype(STORAGE_DTYPES[tag])
        info = self.archive.members.get(member)
        if info is None or info.file_size < size * dtype.itemsize:
            seen = 'absent' if info is None else f'{info.file_size} bytes'
            raise UserError(
                f'{self.archive.path}: storage {member} is {seen}; wanted {size * dtype.itemsize} '
                'bytes: the file is incomplete, copy it again'
            )
        return _Storage(self.archive, member, dtype, size)

    def _tensor(self, storage, offset, shape, strides, *unused) -> TorchTensor:
        shape = tuple(shape)
        tensor = TorchTensor(storage, 0 if 0 in shape else offset, shape, tuple(strides))
        tensor.check_bounds(storage.size)
        return tensor


def read_torch_file(path: str | Path) -> Any:
    """The object that torch saved: nested dicts and lists with `TorchTensor` leaves, unread.

    Raises:
      UserError: the file is absent, cut short, in the format of torch before 1.6, big-endian, or
        its pickle asks for anything but tensors and containers.
    """
    path = Path(path)
    try:
        archive = _Archive(path)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except zipfile.BadZipFile:
        raise UserError(_not_a_zip(path)) from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    pickles = [n for n in archive.members if n == 'data.pkl' or n.endswith('/data.pkl')]
    if len(pickles) != 1:
        raise UserError(f'{path}: a zip with {len(pickles)} data.pkl; wanted one: not a torch file')
    prefix = pickles[0].removesuffix('data.pkl')
    try:
        with zipfile.ZipFile(path) as file:
            order = prefix + 'byteorder'
            if order in archive.members and file.read(order) != b'little':
                raise UserError(f'{path}: saved on a big-endian machine; save it on a little one')
            with file.open(pickles[0]) as stream:
                return _Unpickler(stream, archive, prefix).load()
    except UserError:
        raise
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, OSError, KeyError) as error:
        raise UserError(f'{path}: damaged ({error}); copy it again') from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f'{path}: not a pickle of plain tensors ({error})') from None


def _not_a_zip(path: Path) -> str:
    with open(path, 'rb') as file:
        start = file.read(4)
    if start[:2] == b'PK':
        return f'{path}: its zip directory is missing, so the file is cut short; copy it again'
    if start[:1] == b'\x80':
        return (
            f'{path}: in the format of torch before 1.6; load it in torch and save it again with '
            'torch.save'
        )
    return f'{path}: not a torch file (starts with {start!r}; wanted a zip)'
