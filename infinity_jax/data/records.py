"""What a source of stored images gives, and how a record is found to be broken."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Protocol

from infinity_jax.data.captions import RecordCaptions

RecordLocation = tuple[int, ...]  # where a record lies; the source's own numbers


class BrokenRecord(Exception):
    """A record that cannot be used; the message says why in a few words."""


@dataclasses.dataclass(frozen=True)
class RawRecord:
    """A stored record, its image not yet read."""

    open_image: Callable[[], BinaryIO]  # the encoded image; may raise OSError
    captions: RecordCaptions | None  # None: its source has images alone


class Source(Protocol):
    """Records by place. Small and picklable: worker processes get a copy."""

    @property
    def name(self) -> str:
        """For messages."""

    def files(self) -> tuple[pathlib.Path, ...]:
        """The files that list or hold the records; a change of one makes the index anew."""

    def places(self) -> Iterator[RecordLocation]:
        """Where all records lie, broken ones too, in a fixed order. Called once an index."""

    def read(self, place: RecordLocation) -> RawRecord:
        """The record at a place; raises `BrokenRecord`."""

    def record_name(self, place: RecordLocation) -> str:
        """What a message calls the record."""


def parse_object(text: bytes) -> Mapping[str, Any]:
    """A JSON object; raises `BrokenRecord` for anything else."""
    try:
        fields = json.loads(text)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ones
        raise BrokenRecord(f'bad JSON: {error}') from None
    if not isinstance(fields, dict):
        raise BrokenRecord(f'bad JSON: {type(fields).__name__} instead of an object')
    return fields


def captions_of(fields: Mapping[str, Any], text_field: str = 'text') -> RecordCaptions:
    """Captions from the fields that the released training data has.

    A long caption without a type counts as written by a user and is never cut.
    """
    short, long = fields.get(text_field) or '', fields.get('long_caption') or ''
    if not isinstance(short, str) or not isinstance(long, str):
        raise BrokenRecord('a caption is not text')
    try:
        f'{short}{long}'.encode()
    except UnicodeEncodeError:  # JSON has it as an escape; tokenizers refuse it
        raise BrokenRecord('a caption holds half of a character') from None
    machine_written = fields.get('long_caption_type', 'user_prompt') != 'user_prompt'
    return RecordCaptions((short,), long, machine_written)
