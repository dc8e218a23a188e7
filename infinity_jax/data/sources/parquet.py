"""Parquet files of encoded images and captions, as on the Hugging Face hub or by img2dataset.

Parquet cannot read a single row: reading an image reads its row group. The last few row groups are
kept in memory.
"""

import collections
import dataclasses
import functools
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.passed_over import PassedOver
from infinity_jax.data.records import BrokenRecord, DamagedFile, RawRecord, RecordLocation
from infinity_jax.data.sources.tables import (
    IMAGE_FIELD,
    columns,
    count_other_files,
    table_files,
    table_record,
)
from infinity_jax.errors import UserError, first_line
from infinity_jax.runtime.remote import any_path, is_remote

ENDING = '.parquet'
OPEN_FILES = 64  # that a process keeps open
KEPT_BYTES = 1 << 27  # of row groups, in each process
MAX_GROUP_BYTES = 1 << 29  # of the images of a row group
# Columns in which img2dataset notes why an image could not be fetched; it still writes the row.
_STATUS, _ERROR, _FETCHED = 'status', 'error_message', 'success'


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """The rows of some files. A location is (file, row group, row in the group).

    Attributes:
      paths: the files.
      image_field: column of the image, see `table_record`.
      text_field: column of the short captions, see `captions_of`.
    """

    paths: tuple[pathlib.Path, ...]
    image_field: str = IMAGE_FIELD
    text_field: str = 'text'

    @classmethod
    def open(cls, config: SourceConfig) -> 'ParquetSource':
        folder = any_path(config.path).absolute()
        paths = table_files(folder, ENDING, config.split)
        return cls(paths, config.image_field or IMAGE_FIELD, config.text_field)

    @property
    def name(self) -> str:
        return f'parquet {self.paths[0].parent}'

    def files(self) -> tuple[pathlib.Path, ...]:
        return self.paths

    def locations(self, passed_over: PassedOver | None = None) -> Iterator[RecordLocation]:
        passed_over = passed_over or PassedOver()
        count_other_files(self.paths, ENDING, passed_over)
        for number, path in enumerate(self.paths):
            try:
                states = [self._states(path, group) for group in range(self._groups(path))]
            except DamagedFile as error:
                passed_over.add_damaged(self.paths, number, str(error))
                continue
            for group, of_group in enumerate(states):
                for row, status in enumerate(of_group):
                    if status in (None, _FETCHED):
                        yield number, group, row
                    else:
                        name = self.record_name((number, group, row))
                        passed_over.add(f'row of status {status}', name)

    def read(self, location: RecordLocation) -> RawRecord:
        number, group, row = location
        path = self.paths[number]
        try:
            names = columns(_opened(path).schema_arrow.names, self.image_field, self.text_field)
            table = _ROW_GROUPS.read(path, group, tuple(names))
            (fields,) = table.slice(row, 1).to_pylist()
        except (OSError, ValueError, DamagedFile) as error:  # ArrowInvalid is a ValueError
            raise BrokenRecord(first_line(error, 200)) from None
        return table_record(fields, path.parent, self.image_field, self.text_field)

    def record_name(self, location: RecordLocation) -> str:
        number, group, row = location
        return f'{self.paths[number].name} row group {group} row {row}'

    def _groups(self, path: pathlib.Path) -> int:
        """The number of row groups of a file that can be used."""
        file = _opened(path)
        wanted = columns(file.schema_arrow.names, self.image_field, self.text_field)
        for group in range(file.metadata.num_row_groups):
            described = file.metadata.row_group(group)
            chunks = map(described.column, range(described.num_columns))
            images = [c for c in chunks if c.path_in_schema.split('.')[0] == wanted[0]]
            size = sum(chunk.total_uncompressed_size for chunk in images)
            if size > MAX_GROUP_BYTES:
                raise UserError(
                    f'{path}: a row group holds {size >> 20} MB of images, and to read one image '
                    'reads all of them; write the file again with row_group_size=100 '
                    '(pyarrow.parquet.write_table)'
                )
        return file.metadata.num_row_groups

    def _states(self, path: pathlib.Path, group: int) -> list[Any]:
        """The status of each row of a group by img2dataset; None in other files."""
        file = _opened(path)
        if not {_STATUS, _ERROR} <= set(file.schema_arrow.names):
            return [None] * file.metadata.row_group(group).num_rows
        try:
            return file.read_row_group(group, columns=[_STATUS]).column(0).to_pylist()
        except (OSError, ValueError) as error:
            raise DamagedFile(first_line(error, 200)) from None


class _RowGroups:
    """Reads row groups, and keeps the last few of them."""

    def __init__(self):
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[tuple[Any, ...], Any] = collections.OrderedDict()

    def read(self, path: pathlib.Path, group: int, names: tuple[str, ...]) -> Any:
        key = (path, group, names)
        with self._lock:  # several threads often want the same group
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            table = _opened(path).read_row_group(group, columns=list(names), use_threads=False)
            self._kept[key] = table
            while len(self._kept) > 1 and sum(t.nbytes for t in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return table


_ROW_GROUPS = _RowGroups()


@functools.lru_cache(maxsize=OPEN_FILES)
def _opened(path: pathlib.Path) -> Any:
    """An open file; raises `DamagedFile`."""
    import pyarrow.parquet  # takes a while, and only this source needs it

    try:
        if is_remote(path):
            return pyarrow.parquet.ParquetFile(path.open('rb'))
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    except (OSError, ValueError) as error:
        raise DamagedFile(f'not a Parquet file, or damaged: {first_line(error, 200)}') from None
