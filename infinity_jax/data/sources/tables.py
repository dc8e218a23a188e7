"""Columns of Parquet and Arrow files: an encoded image, or its path, and captions."""

import functools
import io
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from infinity_jax.data.fields import advice, captions_of, check_no_link, values_at
from infinity_jax.data.passed_over import PassedOver, is_hidden
from infinity_jax.data.records import BrokenRecord, DamagedFile, RawRecord, open_file
from infinity_jax.errors import UserError

IMAGE_FIELD = 'image'
_NUMBERED = re.compile(r'(.+)-(\d{5})-of-(\d{5})', re.ASCII)  # name, number, files in all
_LONG = ('long_caption', 'long_caption_type')


def table_files(folder: pathlib.Path, ending: str, split: str) -> tuple[pathlib.Path, ...]:
    """The files of a split, such as `train-00000-of-00008.parquet`; all, if none names 'train'.

    Raises:
      UserError: there are none.
    """
    paths = sorted(p for p in folder.glob(f'*{ending}') if p.is_file() and not is_hidden(p.name))
    own = [path for path in paths if _is_of(path, split)]
    if not own and split != 'train' and paths:
        names = ', '.join(path.name for path in paths)
        raise UserError(f'{folder}: no *{ending} of split {split!r}; there are {names[:200]}')
    if not paths:
        inside = sorted({path.parent.name for path in folder.glob(f'*/*{ending}')})
        hint = f': name one of the folders in it: {", ".join(inside)[:200]}' if inside else ''
        raise UserError(f'{folder}: no *{ending} in there{hint or "; name their folder"}')
    return tuple(own or paths)


def count_other_files(paths: Sequence[pathlib.Path], ending: str, passed_over: PassedOver) -> None:
    """Counts the files next to those of a source that have the same ending, and absent ones.

    A file is absent if the others say so by their names, such as `train-00000-of-00008.parquet`.
    """
    for path in sorted(paths[0].parent.glob(f'*{ending}')):
        if path not in paths:
            passed_over.add(_other_file(path), path.name)
    present: dict[tuple[str, str], set[int]] = {}
    for path in paths:
        if numbered := _NUMBERED.fullmatch(path.stem):
            present.setdefault((numbered[1], numbered[3]), set()).add(int(numbered[2]))
    for (name, total), numbers in present.items():
        for number in sorted(set(range(int(total))) - numbers):
            passed_over.add('file absent', f'{name}-{number:05}-of-{total}{ending}')


def _other_file(path: pathlib.Path) -> str:
    """Why a file is none of a source."""
    if is_hidden(path.name):
        return 'hidden file'
    return 'file of another split' if path.is_file() else 'not a regular file'


def _is_of(path: pathlib.Path, split: str) -> bool:
    return bool(re.search(rf'(^|-){re.escape(split)}([-_.]|$)', path.stem))


def columns(names: Iterable[str], image_field: str, text_field: str) -> list[str]:
    """The columns to read.

    Args:
      names: of all columns.
      image_field: column of the image.
      text_field: column of the captions; '/' separates the names of nested fields; '': none.

    Raises:
      DamagedFile: there is no such column.
    """
    known, wanted = list(names), list[str]()
    for setting, field in (('image_field', image_field), ('text_field', text_field)):
        root = field if field in known else field.split('/')[0]
        if field and root not in known:
            raise DamagedFile(f'it has no column {field!r}; {advice(known, setting)}')
        wanted += [root] if field else []
    long = [name for name in _LONG if text_field and name in known]
    return list(dict.fromkeys(wanted + long))


def table_record(
    row: Mapping[str, Any], folder: pathlib.Path, image_field: str, text_field: str
) -> RawRecord:
    """The record of a row.

    Args:
      row: column name to value. The image is bytes of its file, a path, or a group of both as the
        library `datasets` stores it.
      folder: where relative paths start.
      image_field, text_field: see `columns`.

    Raises:
      BrokenRecord: it has no image, or a caption is not text.
    """
    captions = captions_of(row, text_field)
    found = values_at(row, image_field) or [None]
    image: Any = found[0] if len(found) == 1 else found
    path = image
    if isinstance(image, Mapping):
        image, path = image.get('bytes'), image.get('path')
    if isinstance(image, bytes):
        return RawRecord(functools.partial(io.BytesIO, image), captions)
    if isinstance(path, str) and path and '\0' not in path:
        check_no_link(image_field, path)
        return RawRecord(functools.partial(open_file, folder / path), captions)
    if image is None:
        raise BrokenRecord(f'{image_field} is empty')
    raise BrokenRecord(
        f'{image_field} is {type(image).__name__}; wanted the bytes of an image file, or its path'
    )
