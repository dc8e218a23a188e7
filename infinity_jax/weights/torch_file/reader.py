"""Reads PyTorch `.pth` files without torch and without executing their content.

Since torch 1.6 a `.pth` file is a zip with a pickle that describes the tensors and one member per
storage. `legacy` reads the layout before that.
"""

import dataclasses
import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import check_content
from infinity_jax.runtime.local_files import open_regular
from infinity_jax.weights.torch_file.legacy import read_legacy
from infinity_jax.weights.torch_file.unpickler import MAX_PICKLE_BYTES, Storage, load_pickle

MAX_SPARE = 2**20  # bytes of a compressed member beyond those of its elements
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)  # of damaged members


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
        self.whole: set[str] = set()  # members whose checksum was compared
        with zipfile.ZipFile(path) as archive:
            self.members = {info.filename: info for info in archive.infolist()}
            twice = len(archive.infolist()) - len(self.members)
        if twice:
            raise UserError(
                f'{path}: its zip directory has {twice} names twice: the file is damaged, copy it '
                'again'
            )

    def read(self, member: str) -> bytes:
        """The content of a small member; zipfile compares its checksum."""
        size = self.members[member].file_size
        if size > MAX_PICKLE_BYTES:
            raise UserError(
                f'{self.path}: {member} has {size} bytes; wanted {MAX_PICKLE_BYTES} at most: not a '
                'file of tensors alone'
            )
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(member)

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
        """The storage's elements: a view of the mapped file, or a copy if it was compressed.

        zipfile compares the checksum of what it reads. A mapped member is read once for that.

        Raises:
          UserError: the member is damaged.
        """
        info = self.members[storage.member]
        if not storage.size:
            return np.empty(0, storage.dtype)
        try:
            if info.compress_type != zipfile.ZIP_STORED:
                self._check_inflated(info, storage)
                with zipfile.ZipFile(self.path) as archive:
                    return np.frombuffer(archive.read(info), storage.dtype, storage.size)
            content = np.memmap(self.path, np.uint8, 'r', self._start(info), (info.file_size,))
        except (*ZIP_ERRORS, ValueError, struct.error) as error:
            raise UserError(
                f'{self.path}: {storage.member} is damaged ({error}); copy the file again'
            ) from None
        # 0: torch.serialization.set_crc32_options(False) leaves checksums out.
        if storage.member not in self.whole and info.CRC not in (0, zlib.crc32(content.data)):
            raise UserError(
                f'{self.path}: {storage.member} is damaged: its bytes do not have the checksum of '
                'the zip directory; copy the file again'
            )
        self.whole.add(storage.member)
        return content[: storage.size * storage.dtype.itemsize].view(storage.dtype)

    def _check_inflated(self, info: zipfile.ZipInfo, storage: _Member) -> None:
        """Raises `UserError` if a compressed member is much larger than its elements."""
        wanted = storage.size * storage.dtype.itemsize
        if info.file_size > wanted + MAX_SPARE:
            raise UserError(
                f'{self.path}: {info.filename} has {info.file_size} bytes; wanted {wanted}: the '
                'file is damaged, copy it again'
            )

    def _start(self, info: zipfile.ZipInfo) -> int:
        """The first byte of a member that is not compressed."""
        with open(self.path, 'rb') as file:
            # The local header repeats name and extra field, with lengths of its own.
            file.seek(info.header_offset + 26)
            name_length, extra_length = struct.unpack('<HH', file.read(4))
        return info.header_offset + 30 + name_length + extra_length


def read_torch_file(path: str | Path) -> Any:
    """The object that torch saved: nested dicts and lists with unread `TorchTensor` leaves.

    Raises:
      UserError: the file is absent, truncated or saved on a big-endian machine, or its pickle
        refers to more than tensors and containers.
    """
    path = Path(path)
    with open_regular(path) as file:
        start = file.read(4)
    try:
        if start[:2] == b'PK':
            return _read_zip(path)
        if start[:1] == pickle.PROTO:
            return read_legacy(path)
    except UserError:
        raise
    except (*ZIP_ERRORS, pickle.UnpicklingError, KeyError) as error:
        raise UserError(f'{path}: damaged ({error}); copy it again') from None
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(f'{path}: not a pickle of plain tensors ({error})') from None
    check_content(path)
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

    order = prefix + 'byteorder'
    if order in archive.members and archive.read(order) != b'little':
        raise UserError(f'{path}: saved on a big-endian machine; save it on a little one')
    return load_pickle(io.BytesIO(archive.read(pickles[0])), path, storage)
