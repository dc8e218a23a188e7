"""Stored records: an encoded image with its captions, and the sources that read them."""

import dataclasses
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.passed_over import PassedOver

RecordLocation = tuple[int, ...]  # numbers by which a source finds a record in its files


class BrokenRecord(Exception):
    """A record cannot be used; the message is the reason in a few words."""


class DamagedFile(Exception):
    """A file of records cannot be used; the message is the reason in a few words."""


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
          passed_over: counts the files, members and lines that are no record, and lists the
            damaged files, all of whose records are left out.
        """

    def read(self, location: RecordLocation) -> RawRecord:
        """Reads the record at a location; raises `BrokenRecord`."""

    def record_name(self, location: RecordLocation) -> str:
        """The record's name in messages, which also decides its split."""
