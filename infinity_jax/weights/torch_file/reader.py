"""Reads PyTorch `.pth` files without torch and without executing their content.

Since torch 1.6 a `.pth` file is a zip with a pickle that describes the tensors and one member per
storage. `legacy` reads the layout before that.
"""

import dataclasses
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.weights.torch_file.legacy import read_legacy
from infinity_jax.weights.torch_file.unpickler import Storage, Unpickler


@dataclasses.dataclass(frozen=True)
class _Member(Storage):
    """A storage that is a member of the zip."""

    archive: '_Archive'
    member: str

    def elements(self) -> np.ndarray:
        return self.archive.map(self)


class _Archive:
    """The zip around the pickle; maps storages into memory where they are not compressed."""

    def __init__(self, path: Path):
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.members = {info.filename: info for info in archive.infolist()}

    def storage(self, member: str, dtype: np.dtype, size: int) -> _Member:
        info = self.members.get(member)
        if info is None or info.file_size < size * dtype.itemsize:
            seen = 'absent' if info is None else f'{info.file_size} bytes'
            raise UserError(
                f'{self.path}: storage {member} is {seen}; wanted {size * dtype.itemsize} '
                'bytes: the file is incomplete, copy it again'
            )
        return _Member(self.path, dtype, size, self, member)

    def map(self, storage: _Member) -> np.ndarray:
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


def read_torch_file(path: str | Path) -> Any:
    """The object that torch saved: nested dicts and lists with unread `TorchTensor` leaves.

    Raises:
      UserError: the file is absent, truncated or saved on a big-endian machine, or its pickle
        refers to more than tensors and containers.
    """
    path = Path(path)
    try:
        with open(path, 'rb') as file:
            start = file.read(4)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    try:
        if start[:2] == b'PK':
            return _read_zip(path)
        if start[:1] == pickle.PROTO:
            return read_legacy(path)
    except UserError:
        raise
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, OSError, KeyError) as error:
        raise UserError(f'{path}: damaged ({error}); copy it again') from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f'{path}: not a pickle of plain tensors ({error})') from None
    raise UserError(
        f'{path}: not a torch file (starts with {start!r}); name one that torch.save wrote or a '
        '.safetensors file, or copy it again if something else was saved in its place'
    )


def _read_zip(path: Path) -> Any:
    try:
        archive = _Archive(path)
    except zipfile.BadZipFile:
        raise UserError(
            f'{path}: its zip directory is missing, so the file is cut short; copy it again'
        ) from None
    pickles = [n for n in archive.members if n == 'data.pkl' or n.endswith('/data.pkl')]
    if len(pickles) != 1:
        raise UserError(f'{path}: a zip with {len(pickles)} data.pkl; wanted one: not a torch file')
    prefix = pickles[0].removesuffix('data.pkl')

    def storage(key: str, dtype: np.dtype, size: int) -> _Member:
        return archive.storage(f'{prefix}data/{key}', dtype, size)

    with zipfile.ZipFile(path) as file:
        order = prefix + 'byteorder'
        if order in archive.members and file.read(order) != b'little':
            raise UserError(f'{path}: saved on a big-endian machine; save it on a little one')
        with file.open(pickles[0]) as stream:
            return Unpickler(stream, path, storage).load()
