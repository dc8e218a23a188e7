"""WebDataset tar shards: members `KEY.jpg` with `KEY.txt`, `KEY.json` or both."""

import dataclasses
import functools
import io
import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.fields import captions_of, parse_object
from infinity_jax.data.passed_over import PassedOver, ending_reason, is_hidden
from infinity_jax.data.records import BrokenRecord, DamagedFile, RawRecord, RecordLocation
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
from infinity_jax.runtime.remote import RemotePath, any_path

_COLUMNS = {IMAGE: 1, TEXT: 3, JSON: 5}  # of the pair (offset, bytes) in a location
_COMPRESSED = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}
_CHUNK = 1 << 20  # bytes
_IN_A_ROW = 'members of one record must follow each other in a shard, as tar --sort=name packs them'


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


def open_part(path: pathlib.Path, start: int, size: int) -> BinaryIO:
    """Opens a buffered `FilePart`; of a shard in a store, reads all of it in one request."""
    if isinstance(path, RemotePath):
        return io.BytesIO(path.read_range(start, size))
    return io.BufferedReader(FilePart(path, start, size), 1 << 16)


@dataclasses.dataclass(frozen=True)
class TarSource:
    """The records of some shards.

    A location is (shard, image offset, bytes, text offset, bytes, JSON offset, bytes). An offset
    is `ABSENT` where the record lacks a member, and `SEVERAL` where it has several. JSON holds the
    fields of the released data; a text is the short caption. `members` says which members are a
    record.

    Attributes:
      paths: the shards.
      text_field: field of the short captions in JSON, see `captions_of`.
    """

    paths: tuple[pathlib.Path, ...]
    text_field: str = 'text'

    @classmethod
    def open(cls, config: SourceConfig) -> 'TarSource':
        folder = any_path(config.path).absolute()
        paths = tuple(sorted(path for path in folder.glob('*.tar') if _is_shard(path)))
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

    def locations(self, passed_over: PassedOver | None = None) -> Iterator[RecordLocation]:
        passed_over = passed_over or PassedOver()
        for path in sorted(self.paths[0].parent.iterdir()):
            if path not in self.paths and not path.is_dir():
                passed_over.add(f'file next to the shards, {_file_reason(path)}', path.name)
        for number, path in enumerate(self.paths):
            try:
                members = list(_members(path, passed_over))
            except DamagedFile as error:
                passed_over.add_damaged(self.paths, number, str(error))
                continue
            for record in group(members, passed_over):
                yield _location(number, record)

    def read(self, location: RecordLocation) -> RawRecord:
        path = self.paths[location[0]]
        image, text, fields = location[1:3], location[3:5], location[5:7]
        if image[0] == ABSENT:
            raise BrokenRecord(f'it has no image; {_IN_A_ROW}')
        check_members(image[0], text[0], fields[0])
        try:
            mapping = parse_object(_content(path, fields)) if fields[0] != ABSENT else {}
            if text[0] != ABSENT:
                mapping = {**mapping, self.text_field: _content(path, text).decode('utf-8-sig')}
        except (OSError, UnicodeDecodeError) as error:
            raise BrokenRecord(f'text cannot be read: {error}') from None
        if self.text_field and text[0] == fields[0] == ABSENT:
            raise BrokenRecord(f'it has no text; {_IN_A_ROW}')
        captions = captions_of(mapping, self.text_field)
        return RawRecord(functools.partial(open_part, path, *image), captions)

    def record_name(self, location: RecordLocation) -> str:
        path = self.paths[location[0]]
        offset = next(n for n in location[1::2] if n >= 0)
        try:  # the header block precedes the content
            header = _content(path, (offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE))
            member = tarfile.TarInfo.frombuf(header, 'utf-8', 'replace').name
        except (OSError, tarfile.TarError):
            member = f'member at byte {offset}'
        return f'{path.name} {member}'


def _is_shard(path: pathlib.Path) -> bool:
    return path.is_file() and not is_hidden(path.name)


def _file_reason(path: pathlib.Path) -> str:
    if is_hidden(path.name):
        return 'hidden'
    return ending_reason(path.name) if path.is_file() else 'not a regular file'


def _location(shard: int, record: Record) -> RecordLocation:
    location = [shard] + [ABSENT] * 6
    for kind, member in record.members.items():
        location[_COLUMNS[kind] : _COLUMNS[kind] + 2] = member.offset, member.size
    if record.several:
        location[_COLUMNS[record.several]] = SEVERAL
    return tuple(location)


def _members(path: pathlib.Path, passed_over: PassedOver) -> Iterator[Member]:
    """The members of a shard that may be part of a record; all others but folders are counted.

    Raises:
      DamagedFile: the shard cannot be read to its end.
    """
    try:
        with path.open('rb') as file, tarfile.open(fileobj=file, mode='r:') as shard:
            for member in shard:
                kind = kind_of(member.name)
                if member.isdir():
                    continue
                if is_hidden(member.name):
                    passed_over.add('hidden member', f'{path.name} {member.name}')
                elif not member.isfile():
                    passed_over.add('member that is a link or device', f'{path.name} {member.name}')
                elif kind is None:
                    reason = f'member of {ending_reason(member.name)}'
                    passed_over.add(reason, f'{path.name} {member.name}')
                else:
                    yield Member(member.name, kind, member.offset_data, member.size)
            end = shard.offset
        _check_end(path, end)
    # ValueError: a size or offset beyond 64 bits
    except (OSError, tarfile.TarError, ValueError) as error:
        reason = _compression(path) or f'{error}; fetch or pack it again'
        raise DamagedFile(reason) from None


def _check_end(path: pathlib.Path, end: int) -> None:
    """Raises `DamagedFile` unless only zeros follow byte `end`.

    tarfile takes a damaged header, zeros or a missing end for the end of the archive, and would
    lose the members that follow.
    """
    with path.open('rb') as file:
        file.seek(end)
        start = end
        while chunk := file.read(_CHUNK):
            zeros = len(chunk) - len(chunk.lstrip(b'\0'))
            start += zeros
            if zeros < len(chunk):
                file.seek(start)
                break
        else:
            return
        header = file.read(tarfile.BLOCKSIZE)
    try:
        if start > end:
            tarfile.TarInfo.frombuf(header, 'utf-8', 'replace')
            raise DamagedFile(
                f'a second archive follows at byte {start}; make it a file of its own'
            )
    except tarfile.TarError:
        pass
    raise DamagedFile(f'damaged or cut off at byte {end}; fetch or pack it again')


def _compression(path: pathlib.Path) -> str:
    """What to do about a compressed shard; '' if it is not compressed."""
    try:
        with path.open('rb') as file:
            start = file.read(8)
    except OSError:
        return ''
    found = [name for magic, name in _COMPRESSED.items() if start.startswith(magic)]
    return f'it is compressed with {found[0]}; unpack it' if found else ''


def _content(path: pathlib.Path, span: tuple[int, ...]) -> bytes:
    with open_part(path, *span) as part:
        return part.read()
