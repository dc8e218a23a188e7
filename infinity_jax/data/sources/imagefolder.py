"""Hugging Face's imagefolder: images with `metadata.jsonl` or `metadata.csv` next to them.

    {"file_name": "0001.png", "text": …}

A folder and its subfolders may each have such a list; `file_name` starts from the list's folder.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.fields import parse_object
from infinity_jax.data.passed_over import PassedOver
from infinity_jax.data.records import BrokenRecord, DamagedFile, RawRecord, RecordLocation
from infinity_jax.data.sources.folder import files_below, image_paths
from infinity_jax.data.sources.listed import (
    csv_fields,
    csv_header,
    csv_rows,
    json_lines,
    listed_record,
    read_part,
)
from infinity_jax.errors import UserError
from infinity_jax.runtime.remote import any_path

LISTS = ('metadata.jsonl', 'metadata.csv')  # of two in one folder, the first is used
IMAGE_FIELD = 'file_name'


@dataclasses.dataclass(frozen=True)
class ImagefolderSource:
    """The rows of the lists in a folder. A location is (list, byte offset, bytes, line from 1).

    Attributes:
      folder: the folder.
      names: paths of the lists, relative to the folder.
      headers: column names of each list; () of JSON lines.
      image_field: field of the image's path.
      text_field: field of the short captions, see `captions_of`.
    """

    folder: pathlib.Path
    names: tuple[str, ...]
    headers: tuple[tuple[str, ...], ...]
    image_field: str = IMAGE_FIELD
    text_field: str = 'text'

    @classmethod
    def open(cls, config: SourceConfig) -> 'ImagefolderSource':
        folder = any_path(config.path).absolute()
        paths = list_paths(folder)
        if not paths:
            raise UserError(
                f'data source {config.path}: no {" or ".join(LISTS)} in there; name their folder'
            )
        headers = tuple(csv_header(path) if path.suffix == '.csv' else () for path in paths)
        names = tuple(path.relative_to(folder).as_posix() for path in paths)
        return cls(folder, names, headers, config.image_field or IMAGE_FIELD, config.text_field)

    @property
    def name(self) -> str:
        return f'imagefolder {self.folder}'

    def files(self) -> tuple[pathlib.Path, ...]:
        return tuple(self.folder / name for name in self.names)

    def locations(self, passed_over: PassedOver | None = None) -> Iterator[RecordLocation]:
        passed_over, listed = passed_over or PassedOver(), set[pathlib.Path]()
        for number, path in enumerate(self.files()):
            rows = csv_rows if path.suffix == '.csv' else json_lines
            try:
                with path.open('rb') as file:
                    found = list(rows(file))
            except DamagedFile as error:
                passed_over.add_damaged(self.files(), number, str(error))
                continue
            for offset, size, line, is_record in found:
                if is_record:
                    yield number, offset, size, line
                    listed.add(self._image(number, offset, size))
                else:
                    passed_over.add('empty line', f'{self.names[number]} line {line}')
        for path in image_paths(self.folder):
            if path not in listed:
                name = path.relative_to(self.folder).as_posix()
                passed_over.add('image that no list names', name)

    def read(self, location: RecordLocation) -> RawRecord:
        number, offset, size, _ = location
        path = self.folder / self.names[number]
        return listed_record(
            read_part(path, offset, size),
            self.headers[number],
            path.parent,
            self.image_field,
            self.text_field,
        )

    def record_name(self, location: RecordLocation) -> str:
        return f'{self.names[location[0]]} line {location[3]}'

    def _image(self, number: int, offset: int, size: int) -> pathlib.Path:
        """The path of a row's image; of a bad row, the list itself."""
        path, header = self.folder / self.names[number], self.headers[number]
        content = read_part(path, offset, size)
        try:
            fields = csv_fields(content, header) if header else parse_object(content)
        except BrokenRecord:
            return path
        image = fields.get(self.image_field)
        return path.parent / image if isinstance(image, str) else path


def list_paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """The lists of a folder and its subfolders, one per folder."""
    found: dict[pathlib.Path, pathlib.Path] = {}
    # `metadata.jsonl` comes after `metadata.csv` and replaces it.
    for path in sorted(files_below(folder, PassedOver())):
        if path.name in LISTS and path.is_file():
            found[path.parent] = path
    return sorted(found.values())
