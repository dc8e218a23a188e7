"""Files and folders that appear whole or not at all.

New content is written under a temporary name in the same folder, flushed to the disk and then
renamed. A process or machine that stops in between leaves the old content in its place.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path, and renames that file to `path` when the block ends without error.

    Missing parent folders are created. After an error the temporary file is deleted.

    Raises:
      OSError: the file cannot be written; an old file at `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
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
    temporary = _temporary(folder)
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


def _temporary(path: Path) -> Path:
    # Not the process id: hosts that share the folder may have the same one.
    return path.with_name(f'.{path.name}.{uuid.uuid4().hex}.partial')


def _flush(path: Path) -> None:
    with open(path, 'rb') as file:
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
