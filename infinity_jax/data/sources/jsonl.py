"""Folders of `*.jsonl`, one record a line, as the released training data is laid out.

    {"image_path": …, "h_div_w": …, "text": …, "long_caption": …, "long_caption_type": …}

The names of the files state a ratio and a count and the records state a ratio; all of these are
often wrong and none is read: lines are counted, and an image's own size decides.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.records import (
    BrokenRecord,
    RawRecord,
    RecordLocation,
    captions_of,
    parse_object,
)
from infinity_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class JsonlSource:
    """The lines of some files. A place is (file, byte offset, bytes, line number from 1).

    Attributes:
      paths: the files.
      images: the folder that relative image paths start from.
    """

    paths: tuple[pathlib.Path, ...]
    images: pathlib.Path

    @classmethod
    def open(cls, config: SourceConfig) -> 'JsonlSource':
        folder = pathlib.Path(config.path).absolute()
        paths = tuple(sorted(folder.glob('*.jsonl')))
        if not paths:
            raise UserError(f'data source {config.path}: no *.jsonl in there; name their folder')
        return cls(paths, pathlib.Path(config.images).absolute() if config.images else folder)

    @property
    def name(self) -> str:
        return f'jsonl {self.paths[0].parent}'

    def files(self) -> tuple[pathlib.Path, ...]:
        return self.paths

    def places(self) -> Iterator[RecordLocation]:
        for number, path in enumerate(self.paths):
            offset = 0
            with path.open('rb') as file:
                for line_number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, offset, len(line), line_number
                    offset += len(line)

    def read(self, place: RecordLocation) -> RawRecord:
        number, offset, size, _ = place
        try:
            with self.paths[number].open('rb') as file:
                file.seek(offset)
                line = file.read(size)
        except OSError as error:
            raise BrokenRecord(f'{self.paths[number]}: {error.strerror}') from None
        fields = parse_object(line)
        path = fields.get('image_path')
        if not isinstance(path, str) or not path or not _may_name_a_file(path):
            raise BrokenRecord(f'image_path is {path!r}')
        return RawRecord(functools.partial(open, self.images / path, 'rb'), captions_of(fields))

    def record_name(self, place: RecordLocation) -> str:
        return f'{self.paths[place[0]].name} line {place[3]}'


def _may_name_a_file(path: str) -> bool:
    """Whether the system takes it for a name: without zero bytes and halves of characters."""
    try:
        return b'\0' not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
