"""Paths that can name a file, and files that can be read to their end."""

import os
import pathlib
import stat
from collections.abc import Iterable
from typing import Any, BinaryIO

from infinity_jax.errors import UserError
from infinity_jax.runtime.remote import check_scheme

MAX_BYTES = 4096  # of a path, on Linux


def check_paths(config: Any, where: str, fields: Iterable[str]) -> None:
    """`check_path` of the fields of a dataclass that are not empty."""
    for field in fields:
        if path := getattr(config, field):
            check_path(path, f'config field {where}{field}')


def check_path(path: str, name: str) -> None:
    """Raises `UserError` where no file system could have this path, or its scheme is not read.

    Args:
      path: any text.
      name: of the field or flag that holds it.
    """
    if not can_be_path(path):
        seen = f'{ascii(path[:60])}{"…" * (len(path) > 60)}'
        raise UserError(
            f'{name} is {seen}; wanted a path of 1 to {MAX_BYTES} bytes without a zero byte'
        )
    check_scheme(path, name)


def can_be_path(path: str) -> bool:
    """Whether the operating system accepts a text as a path: not empty, too long or half."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return 0 < len(encoded) <= MAX_BYTES and b'\0' not in encoded


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file of bytes.

    Raises:
      UserError: there is no such file, it cannot be read, or it is a folder, a pipe or a device:
        reading a pipe could wait for ever.
    """
    check_path(os.fspath(path), 'a path')
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            kind = 'a folder' if pathlib.Path(path).is_dir() else 'a pipe or device'
            raise UserError(f'{path}: is {kind}; wanted a regular file')
        return open(path, 'rb')
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
