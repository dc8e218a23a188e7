"""Files and folders that appear whole or not at all.

New content is written under a temporary name in the same folder, flushed to the disk and then
renamed. A process or machine that stops in between leaves the old content in its place. Temporary
content of processes that are gone is removed at the next write to the same place.
"""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path, and renames that file to `path` when the block ends without error.

    Missing parent folders are created. After an error the temporary file is deleted.

    Raises:
      OSError: the file cannot be written; an old file at `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        flush_and_rename(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(folder: Path, keep_existing: bool = False) -> Iterator[Path]:
    """Yields an empty temporary folder that becomes `folder` when the block ends without error.

    A process that is killed between the two renames leaves the old folder at
    `previous_folder(folder)`.

    Args:
      folder: the final place. Missing parent folders are created.
      keep_existing: if another process creates `folder` meanwhile, keep that one; it must have the
        same content. By default an existing folder is replaced.

    Raises:
      OSError: the folder cannot be written; an old one is unchanged.
    """
    temporary = temporary_path(folder)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob('*'):
            if path.is_file():
                _flush(path)
        if keep_existing:
            _rename_unless_existing(temporary, folder)
        else:
            _replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush_and_rename(temporary: Path, path: Path) -> None:
    """Flushes a finished file to the disk and renames it to `path` of the same file system."""
    _flush(temporary)
    os.replace(temporary, path)


def previous_folder(folder: Path) -> Path:
    """Where the old folder is kept while `atomic_folder` replaces it."""
    return folder.parent / f'.{folder.name}.previous'


def temporary_path(path: Path) -> Path:
    """A name in the folder of `path` for content in progress; removes what dead processes left."""
    _remove_stale(path)
    return path.with_name(
        f'.{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.partial'
    )


@functools.cache
def _machine() -> str:
    """Digits for the set of processes whose ids this process sees.

    Hosts and containers that share a folder may have equal process ids.
    """
    text = socket.gethostname()
    with contextlib.suppress(OSError, AttributeError):
        text += os.readlink('/proc/self/ns/pid')
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache  # once per place and process
def _remove_stale(path: Path) -> None:
    """Removes temporary content of `path` whose process, on this machine, is gone.

    Version 0.1 called it .NAME.saving-PID.
    """
    if os.name != 'posix' or not path.parent.is_dir():
        return
    ours = re.compile(
        rf'\.{re.escape(path.name)}\.(?:saving-(\d+)|{_machine()}-(\d+)-[0-9a-f]+\.partial)'
    )
    with contextlib.suppress(OSError):
        for found in list(path.parent.iterdir()):
            match = ours.fullmatch(found.name)
            if match and not _is_alive(int(match[1] or match[2])):
                if found.is_dir() and not found.is_symlink():
                    shutil.rmtree(found, ignore_errors=True)
                else:
                    found.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # of another user
    return True


def _flush(path: Path) -> None:
    file: BinaryIO
    try:
        file = open(path, 'r+b')  # Windows flushes only what is open for writing
    except PermissionError:  # a copy of a read-only file
        file = open(path, 'rb')
    with file:
        os.fsync(file.fileno())


def _rename_unless_existing(new: Path, folder: Path) -> None:
    try:
        os.rename(new, folder)
    except OSError:
        if not folder.exists():
            raise


def _replace_folder(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; at every moment the old or the new one is whole on disk."""
    backup = previous_folder(folder)
    if folder.exists():
        shutil.rmtree(backup, ignore_errors=True)
        os.rename(folder, backup)
    os.rename(new, folder)
    shutil.rmtree(backup, ignore_errors=True)
