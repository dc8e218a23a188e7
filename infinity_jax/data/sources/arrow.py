"""Arrow files of encoded images and captions: folders that `datasets` saved with `save_to_disk`."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.fields import parse_object
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
from infinity_jax.runtime.local_files import open_regular

ENDING = '.arrow'
STATE = 'state.json'  # of a saved data set; names its files
SPLITS = 'dataset_dict.json'  # of a folder with a data set per split
OPEN_FILES = 64  # that a process keeps open
_FILE_MAGIC = b'ARROW1'  # of Arrow's file format; `datasets` writes its stream format


@dataclasses.dataclass(frozen=True)
class ArrowSource:
    """The rows of some files. A location is (file, record batch, row in the batch).

    Attributes:
      paths: the files, which are mapped into memory.
      image_field: column of the image, see `table_record`.
      text_field: column of the short captions, see `captions_of`.
    """

    paths: tuple[pathlib.Path, ...]
    image_field: str = IMAGE_FIELD
    text_field: str = 'text'

    @classmethod
    def open(cls, config: SourceConfig) -> 'ArrowSource':
        folder = split_folder(pathlib.Path(config.path).absolute(), config.split)
        paths = saved_files(folder) or table_files(folder, ENDING, config.split)
        return cls(paths, config.image_field or IMAGE_FIELD, config.text_field)

    @property
    def name(self) -> str:
        return f'arrow {self.paths[0].parent}'

    def files(self) -> tuple[pathlib.Path, ...]:
        return self.paths

    def locations(self, passed_over: PassedOver | None = None) -> Iterator[RecordLocation]:
        passed_over = passed_over or PassedOver()
        count_other_files(self.paths, ENDING, passed_over)
        for number, path in enumerate(self.paths):
            try:
                batches = _batches(path, self.image_field, self.text_field)
            except DamagedFile as error:
                passed_over.add_damaged(self.paths, number, str(error))
                continue
            for i, batch in enumerate(batches):
                yield from ((number, i, row) for row in range(batch.num_rows))

    def read(self, location: RecordLocation) -> RawRecord:
        number, batch, row = location
        path = self.paths[number]
        try:
            batches = _batches(path, self.image_field, self.text_field)
            found = batches[batch].slice(row, 1)
            found.validate(full=True)  # else damaged offsets would be followed out of the file
            (fields,) = found.to_pylist()
        except (OSError, ValueError, LookupError, DamagedFile) as error:
            raise BrokenRecord(first_line(error, 200)) from None
        return table_record(fields, path.parent, self.image_field, self.text_field)

    def record_name(self, location: RecordLocation) -> str:
        number, batch, row = location
        return f'{self.paths[number].name} batch {batch} row {row}'


def split_folder(folder: pathlib.Path, split: str) -> pathlib.Path:
    """The folder of a split, where `folder` has one for each; else `folder` itself.

    Raises:
      UserError: there is no such split.
    """
    if not (folder / SPLITS).is_file():
        return folder
    splits = sorted(path.parent.name for path in folder.glob(f'*/{STATE}'))
    if split not in splits:
        raise UserError(f'{folder}: no split {split!r}; set split to one of {", ".join(splits)}')
    return folder / split


def saved_files(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The files that the description of a saved data set names; () where there is none.

    Raises:
      UserError: the description is damaged, or a file is missing.
    """
    path = folder / STATE
    if not os.path.lexists(path):
        return ()
    with open_regular(path) as file:
        content = file.read()
    try:
        named = parse_object(content)['_data_files']
        paths = tuple(folder / each['filename'] for each in named)
    except (BrokenRecord, LookupError, TypeError) as error:
        raise UserError(
            f'{path} cannot be read: {first_line(error)}; save the data set again'
        ) from None
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f'{folder}: {len(missing)} of {len(paths)} files are missing, the first {missing[0]}; '
            'copy them there'
        )
    return paths


def read_batches(path: pathlib.Path) -> tuple[Any, list[Any]]:
    """The schema and the record batches of a file, whose content stays on disk until it is used.

    Raises:
      DamagedFile: it is not an Arrow file, or damaged.
    """
    import pyarrow  # takes a while, and only this source needs it

    try:
        mapped = pyarrow.memory_map(str(path))
        if mapped.read(len(_FILE_MAGIC)) == _FILE_MAGIC:
            file = pyarrow.ipc.open_file(mapped)
            return file.schema, [file.get_batch(i) for i in range(file.num_record_batches)]
        mapped.seek(0)
        stream = pyarrow.ipc.open_stream(mapped)
        return stream.schema, list(stream)
    except (OSError, ValueError) as error:
        raise DamagedFile(f'not an Arrow file, or damaged: {first_line(error, 200)}') from None


@functools.lru_cache(maxsize=OPEN_FILES)
def _batches(path: pathlib.Path, image_field: str, text_field: str) -> list[Any]:
    """The columns of a record in each batch; raises `DamagedFile`."""
    schema, batches = read_batches(path)
    wanted = columns(schema.names, image_field, text_field)
    return [batch.select(wanted) for batch in batches]
