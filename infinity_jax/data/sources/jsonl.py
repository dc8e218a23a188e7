"""Folders of `*.jsonl`, one record per line: the layout of the released training data.

    {"image_path": …, "h_div_w": …, "text": …, "long_caption": …, "long_caption_type": …}

File names state a ratio and a number of records, and each record states a ratio. They are often
wrong and are ignored: lines are counted, and the size of the image decides its ratio.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.passed_over import PassedOver, is_hidden
from infinity_jax.data.records import RawRecord, RecordLocation
from infinity_jax.data.sources.listed import json_lines, listed_record, read_part
from infinity_jax.errors import UserError
from infinity_jax.runtime.remote import any_path

IMAGE_FIELD = 'image_path'


@dataclasses.dataclass(frozen=True)
class JsonlSource:
    """The lines of some files. A location is (file, byte offset, bytes, line number from 1).

    Attributes:
      paths: the files.
      images: the folder that relative image paths start from.
      image_field: field of the image's path.
      text_field: field of the short captions, see `captions_of`.
    """

    paths: tuple[pathlib.Path, ...]
    images: pathlib.Path
    image_field: str = IMAGE_FIELD
    text_field: str = 'text'

    @classmethod
    def open(cls, config: SourceConfig) -> 'JsonlSource':
        folder = any_path(config.path).absolute()
        paths = tuple(sorted(path for path in folder.glob('*.jsonl') if _is_list(path)))
        if not paths:
            raise UserError(f'data source {config.path}: no *.jsonl in there; name their folder')
        images = any_path(config.images).absolute() if config.images else folder
        return cls(paths, images, config.image_field or IMAGE_FIELD, config.text_field)

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
            with path.open('rb') as file:
                for offset, size, line, is_record in json_lines(file):
                    if is_record:
                        yield number, offset, size, line
                    else:
                        passed_over.add('empty line', f'{path.name} line {line}')

    def read(self, location: RecordLocation) -> RawRecord:
        number, offset, size, _ = location
        content = read_part(self.paths[number], offset, size)
        return listed_record(content, (), self.images, self.image_field, self.text_field)

    def record_name(self, location: RecordLocation) -> str:
        return f'{self.paths[location[0]].name} line {location[3]}'


def _is_list(path: pathlib.Path) -> bool:
    return path.is_file() and not is_hidden(path.name)
