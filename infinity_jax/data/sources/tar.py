"""WebDataset tar shards: members `KEY.jpg` with `KEY.txt`, `KEY.json` or both."""

import dataclasses
import functools
import io
import os
import pathlib
import tarfile
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

# Ending of a member -> its column pair (offset, bytes) in a location.
_COLUMNS = {'jpg': 1, 'jpeg': 1, 'png': 1, 'webp': 1, 'txt': 3, 'json': 5}
_ABSENT = -1
MAX_FILL = 2 * tarfile.RECORDSIZE  # bytes of zeros that may follow the last member


class FilePart(io.RawIOBase):
    """A range of bytes of a file as a file, so that a header can be read without the rest."""

    def __init__(self, path: str | os.PathLike, start: int, size: int):
        self._file = open(path, 'rb', buffering=0)
        self._start, self._size, self._position = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(origin + offset, 0)
        return self._position

    def readinto(self, buffer) -> int:
        self._file.seek(self._start + self._position)
        left = max(self._size - self._position, 0)
        count = self._file.readinto(memoryview(buffer)[:left])
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_part(path: str | os.PathLike, start: int, size: int) -> io.BufferedReader:
    """Opens a buffered `FilePart`."""
    return io.BufferedReader(FilePart(path, start, size), 1 << 16)


@dataclasses.dataclass(frozen=True)
class TarSource:
    """The samples of some shards: members that agree up to the first dot of the file name.

    A location is (shard, image offset, bytes, text offset, bytes, JSON offset, bytes), −1
    where the sample lacks a member. JSON holds the fields of the released data; a text is the short
    caption.

    Attributes:
      paths: the shards.
      text_field: name of the short caption in JSON.
    """

    paths: tuple[pathlib.Path, ...]
    text_field: str = 'text'

    @classmethod
    def open(cls, config: SourceConfig) -> 'TarSource':
        paths = tuple(sorted(pathlib.Path(config.path).absolute().glob('*.tar')))
        if not paths:
            raise UserError(
                f'data source {config.path}: no *.tar in there; name their folder, and unpack '
                'compressed ones: they cannot be read at random'
            )
        return cls(paths, config.text_field)

    @property
    def name(self) -> str:
        return f'tar {self.paths[0].parent}'

    def files(self) -> tuple[pathlib.Path, ...]:
        return self.paths

    def locations(self) -> Iterator[RecordLocation]:
        for number, path in enumerate(self.paths):
            key: str | None = None
            location: list[int] = []
            for member_key, column, offset, size in _members(path):
                if member_key != key:
                    if key is not None:
                        yield tuple(location)
                    key, location = member_key, [number] + [_ABSENT] * 6
                location[column : column + 2] = offset, size
            if key is not None:
                yield tuple(location)

    def read(self, location: RecordLocation) -> RawRecord:
        path = self.paths[location[0]]
        image, text, fields = location[1:3], location[3:5], location[5:7]
        if image[0] == _ABSENT:
            raise BrokenRecord('it has no image')
        try:
            mapping = parse_object(_content(path, fields)) if fields[0] != _ABSENT else {}
            if text[0] != _ABSENT:
                mapping = {**mapping, self.text_field: _content(path, text).decode()}
        except (OSError, UnicodeDecodeError) as error:
            raise BrokenRecord(f'text cannot be read: {error}') from None
        captions = captions_of(mapping, self.text_field)
        return RawRecord(functools.partial(open_part, path, *image), captions)

    def record_name(self, location: RecordLocation) -> str:
        path = self.paths[location[0]]
        offset = next(n for n in location[1::2] if n != _ABSENT)
        try:  # the header block precedes the content
            header = _content(path, (offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE))
            member = tarfile.TarInfo.frombuf(header, 'utf-8', 'replace').name
        except (OSError, tarfile.TarError):
            member = f'member at byte {offset}'
        return f'{path.name} {member}'


def _members(path: pathlib.Path) -> Iterator[tuple[str, int, int, int]]:
    """(key, column, offset, bytes) of each member of a known kind.

    Raises:
      UserError: the shard is damaged or cannot be read.
    """
    try:
        with tarfile.open(path, 'r:') as shard:
            for member in shard:
                folder, _, file_name = member.name.rpartition('/')
                stem, _, ending = file_name.partition('.')
                column = _COLUMNS.get(ending.lower())
                if member.isfile() and column:
                    yield f'{folder}/{stem}', column, member.offset_data, member.size
            end = shard.offset
        # tarfile takes a damaged header, zeros or a missing end for the end of the archive, and
        # would lose the members that follow.
        rest = path.stat().st_size - end
        if not 0 < rest <= MAX_FILL or any(_content(path, (end, rest))):
            raise tarfile.ReadError(f'damaged or cut off at byte {end}')
    except (OSError, tarfile.TarError) as error:
        raise UserError(f'tar shard {path}: {error}; fetch or pack it again') from None


def _content(path: pathlib.Path, span: tuple[int, ...]) -> bytes:
    with open_part(path, *span) as part:
        return part.read()
