"""Records listed in text files: JSON lines and CSV rows that name an image and its captions."""

import csv
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from infinity_jax.data.fields import advice, captions_of, check_no_link, parse_object
from infinity_jax.data.records import BrokenRecord, DamagedFile, RawRecord, open_file
from infinity_jax.ranges import short
from infinity_jax.runtime.local_files import can_be_path
from infinity_jax.runtime.remote import RemotePath

# Characters in a field of CSV: longer than any caption, but a quotation mark may be left open.
csv.field_size_limit(1 << 20)


def json_lines(file: BinaryIO) -> Iterator[tuple[int, int, int, bool]]:
    """(byte offset, bytes, line number from 1, whether it is a record) of each line of a file."""
    offset = 0
    for number, line in enumerate(file, start=1):
        yield offset, len(line), number, bool(line.strip())
        offset += len(line)


def csv_rows(file: BinaryIO) -> Iterator[tuple[int, int, int, bool]]:
    """The same of each row of a CSV file after the header; a row may have several lines.

    Raises:
      DamagedFile: it is not CSV, for instance because a quotation mark is not closed.
    """
    end = lines = 0

    def texts() -> Iterator[str]:
        nonlocal end, lines
        for line in file:
            end, lines = end + len(line), lines + 1
            yield line.decode('latin-1')  # keeps every byte, so that a bad one spoils only its row

    rows, header = csv.reader(texts(), strict=True), True
    while True:
        offset, first = end, lines + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DamagedFile(f'line {first} is not CSV: {error}') from None
        if row is None:
            return
        if not header:
            yield offset, end - offset, first, any(map(str.strip, row))
        header = False


def csv_header(path: pathlib.Path) -> tuple[str, ...]:
    """The column names of a CSV file; () if it is empty."""
    with path.open(encoding='utf-8-sig', errors='replace', newline='') as file:
        try:
            return tuple(name.strip() for name in next(csv.reader(file), []))
        except csv.Error:
            return ()


def csv_fields(content: bytes, header: tuple[str, ...]) -> Mapping[str, Any]:
    """The fields of a row; raises `BrokenRecord` if it does not fit the header."""
    try:
        (row,) = csv.reader([content.decode()], strict=True)
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise BrokenRecord(f'bad CSV: {error}') from None
    if len(row) != len(header):
        raise BrokenRecord(
            f'bad CSV: {len(row)} values under {len(header)} column names; quote captions with '
            'commas'
        )
    return dict(zip(header, row, strict=True))


def read_part(path: pathlib.Path, offset: int, size: int) -> bytes:
    """Some bytes of a file; raises `BrokenRecord` if they cannot be read."""
    try:
        if isinstance(path, RemotePath):
            return path.read_range(offset, size)
        with path.open('rb') as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise BrokenRecord(f'{path}: {error.strerror}') from None


def listed_record(
    content: bytes,
    header: tuple[str, ...],
    folder: pathlib.Path,
    image_field: str,
    text_field: str,
) -> RawRecord:
    """The record of a line or row.

    Args:
      content: the line or row.
      header: column names of CSV; () for JSON.
      folder: where relative image paths start.
      image_field, text_field: fields of the image's path and of its captions.

    Raises:
      BrokenRecord: it cannot be parsed, or a field is missing or of another type.
    """
    fields = csv_fields(content, header) if header else parse_object(content)
    if image_field not in fields:
        raise BrokenRecord(f'it has no field {image_field!r}; {advice(fields, "image_field")}')
    path = fields[image_field]
    if not isinstance(path, str) or not can_be_path(path):
        raise BrokenRecord(f'{image_field} is {short(path)}; wanted the path of a file')
    check_no_link(image_field, path)
    captions = captions_of(fields, text_field)
    return RawRecord(functools.partial(open_file, folder / path), captions)
