"""Reads the layout of `.pth` files before torch 1.6, which torch still writes when asked to.

Five pickles: a magic number, a version, sizes of C types, the content, and the keys of its
storages. Then each storage in the order of the keys: the number of its elements in 8 bytes, and
the elements; both little-endian on every machine.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.weights.torch_file.unpickler import Storage, load_pickle

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
COUNT_BYTES = 8


@dataclasses.dataclass(frozen=True)
class _Run(Storage):
    """A storage after the pickles."""

    file: '_File'
    key: str

    def elements(self) -> np.ndarray:
        if not self.size:
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self.dtype, 'r', self.file.starts[self.key], (self.size,))


class _File:
    """The storages of the content. Their positions are known once all pickles are read."""

    def __init__(self, path: Path):
        self.path = path
        self.storages: dict[str, _Run] = {}
        self.starts: dict[str, int] = {}  # key -> byte of the first element

    def storage(self, key: str, dtype: np.dtype, size: int) -> _Run:
        found = self.storages.setdefault(key, _Run(self.path, dtype, size, self, key))
        if (found.dtype, found.size) != (dtype, size):
            raise UserError(
                f'{self.path}: storage {key} is {found.size} {found.dtype} to one tensor and '
                f'{size} {dtype} to another: the file is damaged, copy it again'
            )
        return found

    def locate(self, stream: BinaryIO, keys: list[str]) -> None:
        """Finds the position of every storage after the stream's position, without its elements."""
        if sorted(keys) != sorted(self.storages):
            raise UserError(
                f'{self.path}: lists {len(keys)} storages, which are not the {len(self.storages)} '
                'of its tensors: the file is damaged, or has elements that are not read, such as '
                'float8; copy it again, or save it in float32'
            )
        end = os.fstat(stream.fileno()).st_size
        for key in keys:
            storage = self.storages[key]
            self.starts[key] = stream.tell() + COUNT_BYTES
            after = self.starts[key] + storage.size * storage.dtype.itemsize
            if after > end:
                raise UserError(
                    f'{self.path}: {end} bytes, cut short before the end of storage {key}; copy it '
                    'again'
                )
            count = int.from_bytes(stream.read(COUNT_BYTES), 'little')
            if count != storage.size:
                raise UserError(
                    f'{self.path}: storage {key} has {count} elements; wanted {storage.size}: the '
                    'file is damaged, copy it again'
                )
            stream.seek(after)
        if stream.tell() != end:
            raise UserError(
                f'{self.path}: {end - stream.tell()} bytes after its last storage; wanted none: '
                'the file is damaged, copy it again'
            )


def read_legacy(path: Path) -> Any:
    """The object that torch saved, with unread tensors; see `reader.read_torch_file`.

    Raises:
      UserError: another magic number or version, or storages that are cut short or disagree.
      pickle.UnpicklingError, EOFError, TypeError, ValueError, …: its pickles are damaged.
    """
    file = _File(path)
    with open(path, 'rb') as stream:

        def load() -> Any:
            return load_pickle(stream, path, file.storage)

        magic = load()
        if magic != MAGIC:
            raise UserError(
                f"{path}: a pickle that does not start with torch's magic number, so not a torch "
                'file; name one that torch.save wrote'
            )
        version = load()
        if version != VERSION:
            raise UserError(
                f'{path}: version {str(version)[:20]} of the layout before torch 1.6; wanted '
                f'{VERSION}: load it in torch and save it again'
            )
        load()  # sizes of C types, unused
        content = load()
        file.locate(stream, load())
    return content
