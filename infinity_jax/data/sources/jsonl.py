"""Folders of `*.jsonl`, one record per line: the layout of the released training data.

    {"image_path": …, "h_div_w": …, "text": …, "long_caption": …, "long_caption_type": …}

File names state a ratio and a number of records, and each record states a ratio. They are often
wrong and are ignored: lines are counted, and the size of the image decides its ratio.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.passed_over import PassedOver, is_hidden
from infinity_jax.data.records import (
    BrokenRecord,
    RawRecord,
    RecordLocation,
    captions_of,
    open_file,
    parse_object,
)
from infinity_jax.errors import UserError
from infinity_jax.ranges import short
from infinity_jax.runtime.local_files import can_be_path


@dataclasses.dataclass(frozen=True)
class JsonlSource:
    """The lines of some files. A location is (file, byte offset, bytes, line number from 1).

    Attributes:
      paths: the files.
      images: the folder that relative image paths start from.
    """

    paths: tuple[pathlib.Path, ...]
    images: pathlib.Path

    @classmethod
    def open(cls, config: SourceConfig) -> 'JsonlSource':
        folder = pathlib.Path(config.path).absolute()
        paths = tuple(sorted(path for path in folder.glob('*.jsonl') if _is_list(path)))
        if not paths:
            raise UserError(f'data source {config.path}: no *.jsonl in there; name their folder')
        return cls(paths, pathlib.Path(config.images).absolute() if config.images else folder)

    @property
    def name(self) -> str:
        return f'jsonl {self.paths[0].parent}'

    def files(self) -> tuple[pathlib.Path, ...]:
        return self.paths

    def locations(self, passed_over: PassedOver | None = None) -> Iterator[RecordLocation]:
        passed_over = passed_over or PassedOver()
        for path in sorted(self.paths[0].parent.glob('*.jsonl*')):
            if path not in self.paths:
                reason = 'hidden' if is_hidden(path.name) else 'compressed or not a regular file'
                passed_over.add(f'list of records, {reason}', path.name)
        for number, path in enumerate(self.paths):
            offset = 0
            with path.open('rb') as file:
                for line_number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, offset, len(line), line_number
                    else:
                        passed_over.add('empty line', f'{path.name} line {line_number}')
                    offset += len(line)

    def read(self, location: RecordLocation) -> RawRecord:
        number, offset, size, _ = location
        try:
            with self.paths[number].open('rb') as file:
                file.seek(offset)
                line = file.read(size)
        except OSError as error:
            raise BrokenRecord(f'{self.paths[number]}: {error.strerror}') from None
        fields = parse_object(line)
        path = fields.get('image_path')
        if not isinstance(path, str) or not can_be_path(path):
            raise BrokenRecord(f'image_path is {short(path)}')
        return RawRecord(functools.partial(open_file, self.images / path), captions_of(fields))

    def record_name(self, location: RecordLocation) -> str:
        return f'{self.paths[location[0]].name} line {location[3]}'


def _is_list(path: pathlib.Path) -> bool:
    return path.is_file() and not is_hidden(path.name)
