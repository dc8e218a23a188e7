"""Writes shards of features; `features` reads them and says what is in one."""

import dataclasses
import hashlib
import json
import pathlib
import zlib

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.features.stored import INFO, TABLE, FeatureInfo, read_info
from infinity_jax.data.index import Index
from infinity_jax.data.records import Source
from infinity_jax.errors import UserError, first_line
from infinity_jax.runtime.atomic_write import atomic_file, flush_and_rename

OPTIONS = 'group_size:1,uncompressed'  # a record a chunk; features do not compress


@dataclasses.dataclass(frozen=True)
class NewRecord:
    """An image to be stored.

    Attributes:
      number: its place in the order of its source.
      name: as messages call it in the source that it comes from.
      size: height and width of the image as shown.
      features: (h, w, d), of the stored dtype.
      captions: from which training draws.
      texts: text features (T, E) of each of `captions.every()`, or none.
    """

    number: int
    name: str
    size: tuple[int, int]
    features: np.ndarray
    captions: RecordCaptions
    texts: tuple[np.ndarray, ...] = ()


class ShardWriter:
    """One shard, under a temporary name until it is whole on disk.

    Records may come in any order; the table lists them by number.
    """

    def __init__(self, path: pathlib.Path):
        self._path, self._partial = path, path.with_name(f'{path.name}.partial')
        # A process that was killed left it; each shard has one process that writes it.
        self._partial.unlink(missing_ok=True)
        self._writer = ArrayRecordWriter(str(self._partial), OPTIONS)
        self._position = 0
        self._rows: list[tuple[int, tuple[int, ...]]] = []

    def add(self, record: NewRecord) -> None:
        """Appends a record and its text features.

        Raises:
          UserError: no room, or not writable.
        """
        key = zlib.crc32(record.name.encode())
        row = (self._position, *record.size, *record.features.shape[:2], key)
        self._rows.append((record.number, row))
        fields = {'name': record.name, **dataclasses.asdict(record.captions)}
        self._write(record.features.tobytes() + json.dumps(fields).encode())
        for text in record.texts:
            self._write(text.tobytes())

    def finish(self) -> None:
        """Writes the table and gives the file its name.

        Raises:
          UserError: no room, or not writable.
        """
        rows = [row for _, row in sorted(self._rows)]
        self._write(np.array(rows, TABLE).tobytes())
        try:
            self._writer.close()
            flush_and_rename(self._partial, self._path)
        except (OSError, RuntimeError) as error:
            raise self._failure(error) from None

    def _write(self, content: bytes) -> None:
        try:
            self._writer.write(content)
        except (OSError, RuntimeError) as error:
            raise self._failure(error) from None
        self._position += 1

    def _failure(self, error: Exception) -> UserError:
        reason = first_line(error)
        return UserError(
            f'shard {self._path} cannot be written: {reason}; free space and start the same '
            'command again: whole shards are kept'
        )


def digest(source: Source, index: Index) -> str:
    """What tells a source's records from others, wherever they lie."""
    files = [(path.name, path.stat().st_size) for path in source.files()]
    found = hashlib.sha256(repr((type(source).__name__, files)).encode())
    found.update(np.ascontiguousarray(index.keys))
    found.update(np.ascontiguousarray(index.sizes))
    return found.hexdigest()[:16]


def claim_folder(folder: pathlib.Path, info: FeatureInfo) -> None:
    """Describes a folder, or sees that it is described so already.

    Raises:
      UserError: it holds features of another making, or cannot be written.
    """
    there = read_info(folder)
    if there is not None and there != info:
        pairs = zip(dataclasses.astuple(there), dataclasses.astuple(info), strict=True)
        names = [field.name for field in dataclasses.fields(info)]
        found = zip(names, pairs, strict=True)
        name, old, new = next((name, *pair) for name, pair in found if pair[0] != pair[1])
        raise UserError(
            f'{folder} holds features of another making: {name} is {old!r}, and would be {new!r}; '
            'name another folder with --out'
        )
    try:
        text = json.dumps(dataclasses.asdict(info), indent=2)
        with atomic_file(folder / INFO) as temporary:
            temporary.write_text(text + '\n', encoding='utf-8')
    except OSError as error:
        raise UserError(f'{folder} cannot be written: {error}; choose another --out') from None
