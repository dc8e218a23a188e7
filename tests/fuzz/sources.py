"""Reads a whole data source: its index, and then each record as training would."""

import dataclasses
import hashlib
import pathlib
from typing import NamedTuple

import numpy as np

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.decode import decode
from infinity_jax.data.index import load_index
from infinity_jax.data.records import BrokenRecord
from infinity_jax.data.stored_source import open_source

SIZE = (16, 16)  # (Y, X) of the decoded images
MAX_PIXELS = 10**6


class Record(NamedTuple):
    """A record that was read: its captions and the hash of its pixels."""

    captions: tuple[str, ...]
    pixels: str


@dataclasses.dataclass(frozen=True)
class Read:
    """A source that was read.

    Attributes:
      count: records in its index.
      records: name -> record.
      broken: name -> reason.
      passed_over: (reason, count, name of the first).
      damaged: names of the files that are left out.
    """

    count: int
    records: dict[str, Record]
    broken: dict[str, str]
    passed_over: list[tuple[str, int, str]]
    damaged: list[str]


def read_source(
    kind: str, folder: pathlib.Path, index_folder: pathlib.Path, text_field: str = 'text'
) -> Read:
    """Reads all records of a source; a broken one has to give a reason in one line."""
    source = open_source(SourceConfig(kind, str(folder), text_field=text_field))
    index = load_index(source, index_folder, MAX_PIXELS)
    found, broken = dict[str, Record](), dict(index.broken)
    rng = np.random.default_rng(0)
    for location, size in zip(index.locations, index.sizes, strict=True):
        location = tuple(location.tolist())
        name = source.record_name(location)
        if not size.any():
            continue
        try:
            raw = source.read(location)
            pixels = decode(raw.open_image(), SIZE, None, MAX_PIXELS)
            assert raw.captions is not None and raw.captions.sample(rng, 0.5)
        except (BrokenRecord, OSError) as error:  # as the pipeline does
            broken[name] = str(error)
            continue
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        found[name] = Record(raw.captions.every(), digest)
    for name, reason in broken.items():
        assert reason and len(reason) < 5000, f'{name} is broken: {reason[:200]!r}'
    damaged = [name for name, _, _ in index.damaged]
    return Read(len(index), found, broken, index.passed_over, damaged)


def has_reports(read: Read) -> bool:
    """Whether anything was reported as broken or passed over."""
    return bool(read.broken or read.passed_over or read.damaged)
