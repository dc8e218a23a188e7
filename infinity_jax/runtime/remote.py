"""Paths of object stores, such as s3://bucket/folder: which are read, and how.

All access goes through fsspec, whose package for a scheme is installed by the user. A text that
names a store is never taken for a local path, which would make a folder called `s3:`.
"""

import contextlib
import datetime
import errno
import glob
import hashlib
import io
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

from infinity_jax.errors import UserError, first_line

# Scheme -> the package by which fsspec reads it.
SCHEMES = {'az': 'adlfs', 'gs': 'gcsfs', 's3': 's3fs', 'memory': 'fsspec'}
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):(/*)')
# Entries of a description that change with the content of a file; the first one that is there.
_VERSIONS = ('ETag', 'etag', 'generation', 'content_md5', 'mtime', 'LastModified', 'created')


class Status(NamedTuple):
    """The part of `os.stat_result` that a store has.

    Attributes:
      st_mode: a file or a folder, readable by all.
      st_size: bytes.
      st_mtime_ns: a number that changes with the content, which is no time.
    """

    st_mode: int
    st_size: int
    st_mtime_ns: int


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path begins with a scheme: `s3://…`, or the misspelt `s3:/…` and `s3:…`."""
    match = _SCHEME.match(os.fspath(path))
    return match is not None and (bool(match[2]) or match[1] in SCHEMES)


def check_scheme(path: str | os.PathLike, name: str = 'a path') -> None:
    """Raises `UserError` for a scheme that is not read, or that has another number of slashes.

    Args:
      path: any text.
      name: of the field or flag that holds it.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return
    match = cast(re.Match, _SCHEME.match(text))
    scheme, slashes = match.groups()
    known = ', '.join(f'{each}://' for each in SCHEMES if each != 'memory')
    if scheme not in SCHEMES:
        advice = 'a folder of this machine is named without one, and begins with ./ if it has a :'
        raise UserError(f'{name} is {text[:200]}; wanted a path, or one of {known}; {advice}')
    if len(slashes) != 2 or not text[match.end() :].strip('/'):
        raise UserError(f'{name} is {text[:200]}; wanted {scheme}://BUCKET/PATH')


def refuse_remote(path: str | os.PathLike, name: str, advice: str = '') -> None:
    """Raises `UserError` for a path of a store, where only files of this machine can be used.

    Args:
      path: any text.
      name: of the field or flag that holds it.
      advice: what to do instead.
    """
    check_scheme(path, name)
    if is_remote(path):
        advice = advice or 'name a path of this machine, or of a mounted bucket'
        raise UserError(f'{name} is {os.fspath(path)}, which only works on this machine; {advice}')


def file_system(path: str | os.PathLike) -> Any:
    """The fsspec file system of a path.

    Raises:
      UserError: its scheme is not read, or the package for it is missing.
    """
    import fsspec  # here: most paths are local

    check_scheme(path)
    scheme = os.fspath(path).split(':')[0]
    try:
        return fsspec.filesystem(scheme)
    except ImportError:
        package = SCHEMES[scheme]
        raise UserError(
            f'{os.fspath(path)}: needs the package {package}: pip install {package}'
        ) from None


@contextlib.contextmanager
def store_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns any error of a store's client into an `OSError` with the path and a reason."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        text = os.fspath(path)
        raise FileNotFoundError(errno.ENOENT, 'no such file or folder', text) from error
    # Clients raise errors of their own, of their HTTP library and of the system.
    except Exception as error:
        kind = PermissionError if isinstance(error, PermissionError) else OSError
        number = errno.EACCES if kind is PermissionError else errno.EIO
        reason = first_line(error, 200) or type(error).__name__
        raise kind(number, reason, os.fspath(path)) from error


class RemotePath(pathlib.PurePosixPath):
    """A path of a store, with those methods of `pathlib.Path` that sources of data use."""

    def __str__(self) -> str:
        return super().__str__().replace(':/', '://', 1)

    def __fspath__(self) -> str:
        return str(self)

    def absolute(self) -> 'RemotePath':
        """The path itself."""
        return self

    def stat(self) -> Status:
        """Kind, size and version of a file; raises `OSError`."""
        with store_errors(self):
            info = file_system(self).info(str(self))
        kind = stat.S_IFDIR if info['type'] == 'directory' else stat.S_IFREG
        return Status(kind | 0o444, info.get('size') or 0, version(info))

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_file(self) -> bool:
        """Whether there is a file."""
        return self.exists() and stat.S_ISREG(self.stat().st_mode)

    def is_dir(self) -> bool:
        """Whether any file has the path as its folder."""
        return self.exists() and stat.S_ISDIR(self.stat().st_mode)

    def iterdir(self) -> Iterator['RemotePath']:
        """The files and folders in a folder."""
        with store_errors(self):
            found = file_system(self).ls(str(self), detail=False)
        return map(self._of_store, found)

    def glob(self, pattern: str) -> Iterator['RemotePath']:
        """The files and folders below a folder that match a pattern."""
        with store_errors(self):
            found = file_system(self).glob(f'{glob.escape(str(self))}/{pattern}')
        return map(self._of_store, found)

    def files_below(self) -> list['RemotePath']:
        """All files of a folder and its subfolders."""
        with store_errors(self):
            return list(map(self._of_store, file_system(self).find(str(self))))

    def _of_store(self, path: str) -> 'RemotePath':
        """A path as fsspec gives it, without the scheme."""
        return RemotePath(f'{self.parts[0]}//{path.lstrip("/")}')

    def open(self, mode: str = 'r', **text: Any) -> IO[Any]:
        """Opens a file for reading; `text` are the options of `io.TextIOWrapper`."""
        with store_errors(self):
            file = file_system(self).open(str(self), 'rb')
        return file if 'b' in mode else io.TextIOWrapper(file, **text)

    def read_range(self, start: int, size: int) -> bytes:
        """Some bytes of a file, in one request."""
        with store_errors(self):
            return file_system(self).cat_file(str(self), start=start, end=start + size)

    def read_bytes(self) -> bytes:
        """The content of a file."""
        with store_errors(self):
            return file_system(self).cat_file(str(self))

    def read_text(self, encoding: str = 'utf-8', errors: str = 'strict') -> str:
        """The content of a text file."""
        return self.read_bytes().decode(encoding, errors)


def version(info: dict[str, Any]) -> int:
    """A number for the content of a file, of its description by fsspec."""
    found = next((info[name] for name in _VERSIONS if info.get(name)), '')
    text = found.isoformat() if isinstance(found, datetime.datetime) else str(found)
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


def any_path(path: str | os.PathLike) -> pathlib.Path:
    """A path of this machine, or a `RemotePath`, which has the methods that sources use.

    Raises:
      UserError: its scheme is not read.
    """
    check_scheme(path)
    if not is_remote(path):
        return pathlib.Path(path)
    return cast(pathlib.Path, RemotePath(path))
