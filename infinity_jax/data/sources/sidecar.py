"""Folders of images with captions in files of the same name: `0001.jpg`, `0001.txt`.

The rules are those of the members of tar shards: a folder that was unpacked from a shard gives the
same records.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.fields import captions_of, parse_object
from infinity_jax.data.passed_over import PassedOver, ending_reason, is_hidden
from infinity_jax.data.records import BrokenRecord, RawRecord, RecordLocation, open_file
from infinity_jax.data.sources.folder import files_below
from infinity_jax.data.sources.members import (
    ABSENT,
    IMAGE,
    JSON,
    SEVERAL,
    TEXT,
    Member,
    Record,
    check_members,
    group,
    kind_of,
)
from infinity_jax.errors import UserError
from infinity_jax.runtime.remote import any_path


@dataclasses.dataclass(frozen=True)
class SidecarSource:
    """The images in a folder and its subfolders, with the texts next to them.

    A location is the numbers of the image, the text and the JSON file among the names: `ABSENT`
    where the record lacks it, and `SEVERAL` where it has several.

    Attributes:
      folder: the folder.
      names: paths of images and texts, relative to the folder.
      text_field: field of the short captions in JSON, see `captions_of`.
    """

    folder: pathlib.Path
    names: tuple[str, ...]
    text_field: str = 'text'

    @classmethod
    def open(cls, config: SourceConfig) -> 'SidecarSource':
        folder = any_path(config.path).absolute()
        names = _names(folder, PassedOver())
        kinds = {kind_of(name) for name in names}
        if not {IMAGE} < kinds:
            missing = 'images' if IMAGE not in kinds else 'NAME.txt or NAME.json next to the images'
            raise UserError(
                f'data source {config.path}: no {missing} in there; name the folder that holds both'
            )
        return cls(folder, names, config.text_field)

    @property
    def name(self) -> str:
        return f'sidecar {self.folder}'

    def files(self) -> tuple[pathlib.Path, ...]:
        return tuple(self.folder / name for name in self.names)

    def locations(self, passed_over: PassedOver | None = None) -> Iterator[RecordLocation]:
        passed_over = passed_over or PassedOver()
        _names(self.folder, passed_over)
        members = [Member(name, kind_of(name) or '', i, 0) for i, name in enumerate(self.names)]
        # By key, so that `a.jpg`, `a.txt` follow each other although `a b.jpg` sorts between them.
        for record in group(sorted(members, key=lambda m: (m.base, m.name)), passed_over):
            if IMAGE in record.members or record.several == IMAGE:
                yield _location(record)
            else:
                for member in record.members.values():
                    passed_over.add(f'{member.kind} file without an image', member.name)

    def read(self, location: RecordLocation) -> RawRecord:
        check_members(*location)
        image, text, fields = location
        mapping = parse_object(self._content(fields)) if fields != ABSENT else {}
        if text != ABSENT:
            try:
                mapping = {**mapping, self.text_field: self._content(text).decode('utf-8-sig')}
            except UnicodeDecodeError as error:
                raise BrokenRecord(f'{self.names[text]} cannot be read: {error}') from None
        if self.text_field and not mapping:
            raise BrokenRecord('it has no text file of the same name')
        path = self.folder / self.names[image]
        return RawRecord(functools.partial(open_file, path), captions_of(mapping, self.text_field))

    def record_name(self, location: RecordLocation) -> str:
        return self.names[next(number for number in location if number >= 0)]

    def _content(self, number: int) -> bytes:
        path = self.folder / self.names[number]
        try:
            with open_file(path) as file:
                return file.read()
        except OSError as error:
            raise BrokenRecord(f'{path}: {error.strerror}') from None


def _names(folder: pathlib.Path, passed_over: PassedOver) -> tuple[str, ...]:
    """Paths of all images and texts, relative to the folder; other files are counted."""
    names = []
    for path in files_below(folder, passed_over):
        name = path.relative_to(folder).as_posix()
        if is_hidden(path.name):
            passed_over.add('hidden file', name)
        elif kind_of(name) is None:
            passed_over.add(f'file of {ending_reason(name)}', name)
        elif not path.is_file():
            passed_over.add('not a regular file', name)
        else:
            names.append(name)
    return tuple(sorted(names))


def _location(record: Record) -> RecordLocation:
    numbers = {kind: member.offset for kind, member in record.members.items()}
    if record.several:
        numbers[record.several] = SEVERAL
    return tuple(numbers.get(kind, ABSENT) for kind in (IMAGE, TEXT, JSON))
