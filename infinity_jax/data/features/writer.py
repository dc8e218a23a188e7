"""Writes folders of stored features; `reader` describes their format."""

import dataclasses
import hashlib
import json
import pathlib
import zlib

import numpy as np

from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.features.reader import (
    CAPTION_RULES,
    INFO,
    TABLE,
    FeatureInfo,
    FeatureSource,
    array_record_module,
    read_info,
)
from infinity_jax.data.index import Index
from infinity_jax.data.records import Source
from infinity_jax.errors import UserError, first_line
from infinity_jax.runtime.atomic_write import atomic_file, flush_and_rename

OPTIONS = 'group_size:1,uncompressed'  # one record per chunk; features hardly compress


@dataclasses.dataclass(frozen=True)
class NewRecord:
    """An image to be stored.

    Attributes:
      number: the record's number in its source.
      name: the record's name in its source.
      size: height and width of the image as shown.
      features: tokenizer features (h, w, d), of the stored dtype.
      captions: the captions that training samples from.
      texts: text features (T, E) of each of `captions.every()`; () for none.
    """

    number: int
    name: str
    size: tuple[int, int]
    features: np.ndarray
    captions: RecordCaptions
    texts: tuple[np.ndarray, ...] = ()


class ShardWriter:
    """Writes a shard, under a temporary name until it is complete on disk.

    Records may be added in any order; the table lists them by number.
    """

    def __init__(self, path: pathlib.Path):
        self._path, self._partial = path, path.with_name(f'{path.name}.partial')
        # An earlier process that was killed may have left one; no other process writes this shard.
        self._partial.unlink(missing_ok=True)
        self._writer = array_record_module().ArrayRecordWriter(str(self._partial), OPTIONS)
        self._position = 0
        self._rows: list[tuple[int, tuple[int, ...]]] = []

    def add(self, record: NewRecord) -> None:
        """Appends a record and its text features.

        Raises:
          UserError: the file cannot be written.
        """
        key = zlib.crc32(record.name.encode())
        row = (self._position, *record.size, *record.features.shape[:2], key)
        self._rows.append((record.number, row))
        captions = dataclasses.asdict(record.captions)
        fields = {'name': record.name, **captions, 'caption_rules': CAPTION_RULES}
        self._write(record.features.tobytes() + json.dumps(fields).encode())
        for text in record.texts:
            self._write(text.tobytes())

    def finish(self) -> None:
        """Writes the table and gives the file its name.

        Raises:
          UserError: the file cannot be written.
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
            'command again: complete shards are kept'
        )


def digest(source: Source | FeatureSource, index: Index) -> str:
    """Fingerprint of the records of a source; it does not depend on their folder."""
    files = [(path.name, path.stat().st_size) for path in source.files()]
    checksum = hashlib.sha256(repr((type(source).__name__, files)).encode())
    checksum.update(np.ascontiguousarray(index.keys).data)
    checksum.update(np.ascontiguousarray(index.sizes).data)
    return checksum.hexdigest()[:16]


def claim_folder(folder: pathlib.Path, info: FeatureInfo) -> None:
    """Writes the description of a folder, or checks that the folder has the same one.

    Raises:
      UserError: it holds features with another description, or cannot be written.
    """
    existing = read_info(folder)
    if existing is not None and existing != info:
        old, new = dataclasses.asdict(existing), dataclasses.asdict(info)
        name = next(name for name in new if old[name] != new[name])
        raise UserError(
            f'{folder} holds other features: their {name} is {old[name]!r}, that of this run '
            f'{new[name]!r}; name another folder with --out'
        )
    try:
        text = json.dumps(dataclasses.asdict(info), indent=2)
        with atomic_file(folder / INFO) as temporary:
            temporary.write_text(text + '\n', encoding='utf-8')
    except OSError as error:
        raise UserError(f'{folder} cannot be written: {error}; choose another --out') from None
