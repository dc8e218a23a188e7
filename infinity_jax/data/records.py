"""Stored records: an encoded image with its captions, and the sources that read them."""

import dataclasses
import json
import pathlib
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.passed_over import PassedOver

RecordLocation = tuple[int, ...]  # numbers by which a source finds a record in its files


class BrokenRecord(Exception):
    """A record cannot be used; the message is the reason in a few words."""


@dataclasses.dataclass(frozen=True)
class RawRecord:
    """A stored record, its image not yet read."""

    open_image: Callable[[], BinaryIO]  # the encoded image; may raise OSError or BrokenRecord
    captions: RecordCaptions | None  # None: its source has images alone


def open_file(path: pathlib.Path) -> BinaryIO:
    """Opens a file of bytes; a function so that it can be sent to worker processes.

    Raises:
      OSError: there is no such file, or it cannot be read.
      BrokenRecord: it is a pipe, a device or a folder; reading a pipe could wait for ever.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise BrokenRecord(f'{path}: not a regular file')
    return path.open('rb')


class IndexTable(NamedTuple):
    """Stored fields of each of N records."""

    locations: np.ndarray  # int64 (N, k)
    sizes: np.ndarray  # int32 (N, 2), height and width as shown, zeros for a broken record
    keys: np.ndarray  # uint32 (N,), checksum of the record's name, which decides its split


class Source(Protocol):
    """Reads records by location. Small and picklable: worker processes get a copy."""

    @property
    def name(self) -> str:
        """The source's name in messages."""

    def files(self) -> tuple[pathlib.Path, ...]:
        """The files that list or hold the records; a change to one leads to a new index."""

    def locations(self, passed_over: PassedOver | None = None) -> Iterator[RecordLocation]:
        """Locations of all records, broken ones too, in a fixed order. Called once per index.

        Args:
          passed_over: counts the files, members and lines that are no record.
        """

    def read(self, location: RecordLocation) -> RawRecord:
        """Reads the record at a location; raises `BrokenRecord`."""

    def record_name(self, location: RecordLocation) -> str:
        """The record's name in messages, which also decides its split."""


def parse_object(text: bytes) -> Mapping[str, Any]:
    """Parses a JSON object; raises `BrokenRecord` for anything else."""
    try:
        fields = json.loads(text)
    except ValueError as error:  # so are UnicodeDecodeError and JSONDecodeError
        raise BrokenRecord(f'bad JSON: {error}') from None
    except RecursionError:
        raise BrokenRecord('bad JSON: it is nested too deeply') from None
    if not isinstance(fields, dict):
        raise BrokenRecord(f'bad JSON: {type(fields).__name__} instead of an object')
    return fields


def captions_of(fields: Mapping[str, Any], text_field: str = 'text') -> RecordCaptions:
    """Reads captions from the fields of the released training data.

    A long caption without a type counts as written by a user: it is never cut.

    Raises:
      BrokenRecord: a caption is not text.
    """
    short, long = fields.get(text_field) or '', fields.get('long_caption') or ''
    if not isinstance(short, str) or not isinstance(long, str):
        raise BrokenRecord('a caption is not text')
    if '\0' in short or '\0' in long:
        raise BrokenRecord('a caption holds a zero byte')
    try:
        f'{short}{long}'.encode()
    except UnicodeEncodeError:  # a lone surrogate, from an escape in JSON; tokenizers refuse it
        raise BrokenRecord('a caption holds half of a character') from None
    machine_written = fields.get('long_caption_type', 'user_prompt') != 'user_prompt'
    return RecordCaptions((short,), long, machine_written)
