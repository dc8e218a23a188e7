"""The index of a source: location and image size of each record, and the list of broken ones.

It is made once and kept in a folder. The folder's name is a digest of the source and its files, so
that changed files lead to a new index:

    places.npy   int64 (N, k), location of each record
    sizes.npy    int32 (N, 2), height and width as shown, zeros where broken
    keys.npy     uint32 (N,), checksum of the record's name
    broken.json  [[name, reason], …]
    passed_over.json  [[reason, count, name of the first], …] of files and lines without a record
    damaged.json  [[name, reason, records], …] of files that are left out; an estimated number
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import zlib
from typing import Any

import numpy as np
import tqdm

from infinity_jax.data.decode import MAX_PIXELS, read_header
from infinity_jax.data.features.reader import FeatureSource
from infinity_jax.data.passed_over import PassedOver, described
from infinity_jax.data.records import BrokenRecord, IndexTable, RecordLocation, Source
from infinity_jax.errors import UserError
from infinity_jax.runtime.atomic_write import atomic_folder

VERSION = 4  # of the stored files, and of the rules for broken records
THREADS = 8  # most of their time they wait for files
LATER_FRAMES = 'all frames of an animation but the first'
CHUNK = 8192  # records per round of the threads


@dataclasses.dataclass(frozen=True)
class Index:
    """A stored index; its arrays are mapped into memory when first read."""

    folder: pathlib.Path

    @functools.cached_property
    def locations(self) -> np.ndarray:
        """int64 (N, k), what the source needs to read each record."""
        return np.load(self.folder / 'places.npy', mmap_mode='r')

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """int32 (N, 2), height and width of each image as shown; zeros for a broken record."""
        return np.load(self.folder / 'sizes.npy', mmap_mode='r')

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """uint32 (N,), checksum of each record's name."""
        return np.load(self.folder / 'keys.npy', mmap_mode='r')

    @functools.cached_property
    def broken(self) -> list[tuple[str, str]]:
        """(name, reason) of each broken record."""
        return [tuple(pair) for pair in json.loads((self.folder / 'broken.json').read_text())]

    @functools.cached_property
    def passed_over(self) -> list[tuple[str, int, str]]:
        """(reason, count, name of the first) of files and lines without a record, and of frames."""
        return [tuple(row) for row in json.loads((self.folder / 'passed_over.json').read_text())]

    @functools.cached_property
    def damaged(self) -> list[tuple[str, str, int]]:
        """(name, reason, records) of each damaged file; none of its records is in the index.

        The number of its records is estimated, by its size and those of the other files.
        """
        return [tuple(row) for row in json.loads((self.folder / 'damaged.json').read_text())]

    @property
    def lost(self) -> int:
        """Records that cannot be used: broken ones, and those of damaged files."""
        return len(self.broken) + sum(records for _, _, records in self.damaged)

    @property
    def total(self) -> int:
        """All records, with those of damaged files."""
        return len(self) + self.lost - len(self.broken)

    def __len__(self) -> int:
        return len(self.sizes)

    def __reduce__(self):
        return Index, (self.folder,)  # a worker process maps the arrays itself


def load_index(
    source: Source | FeatureSource, folder: str | os.PathLike, max_pixels: int = MAX_PIXELS
) -> Index:
    """The index of a source; it is made if `folder` has none of the present files.

    Args:
      source: the source.
      folder: the folder of all indexes.
      max_pixels: an image of more pixels is a broken record.

    Raises:
      UserError: a file of the source cannot be read, or the folder not written.
    """
    target = pathlib.Path(folder) / f'{type(source).__name__.lower()}-{_digest(source, max_pixels)}'
    if not target.exists():
        try:
            # Other hosts that share the folder may make the same index at the same time.
            with atomic_folder(target, keep_existing=True) as temporary:
                _write(temporary, source, max_pixels)
        except OSError as error:
            raise UserError(
                f'the index of {source.name} cannot be made in {folder}: {error}; set '
                'data.index_dir to a folder that can be written'
            ) from None
    return Index(target)


def _digest(source: Source | FeatureSource, max_pixels: int) -> str:
    files = []
    for path in source.files():
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f'{source.name}: {path}: {error.strerror}; repair the source') from None
        files.append((str(path), status.st_size, status.st_mtime_ns))
    facts = repr((VERSION, source, max_pixels, files))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _write(folder: pathlib.Path, source: Source | FeatureSource, max_pixels: int) -> None:
    passed_over, broken = PassedOver(), list[tuple[str, str]]()
    if isinstance(source, FeatureSource):  # the records were checked when they were made
        table = source.table()
    else:
        table, broken = _scan(source, max_pixels, passed_over)
    if not len(table.sizes):
        reasons = [described([row]) for row in passed_over.rows]
        reasons += [f'{name}: {reason}' for name, reason, _ in passed_over.damaged]
        raise UserError(
            f'{source.name} holds no record{"".join(f", {reason}" for reason in reasons[:5])}; '
            'name another folder, or correct the files or the fields of the source'
        )
    np.save(folder / 'places.npy', table.locations)
    np.save(folder / 'sizes.npy', table.sizes)
    np.save(folder / 'keys.npy', table.keys)
    (folder / 'broken.json').write_text(json.dumps(broken))
    (folder / 'passed_over.json').write_text(json.dumps(passed_over.rows))
    (folder / 'damaged.json').write_text(json.dumps(_damaged(passed_over, len(table.sizes))))


def _damaged(passed_over: PassedOver, records: int) -> list[tuple[str, str, int]]:
    """(name, reason, records) of each damaged file; the whole files have `records` of them."""
    damaged = passed_over.damaged
    per_share = records / (1 - sum(share for _, _, share in damaged))
    return [(name, reason, max(round(share * per_share), 1)) for name, reason, share in damaged]


def _scan(
    source: Source, max_pixels: int, passed_over: PassedOver
) -> tuple[IndexTable, list[tuple[str, str]]]:
    """The table and the broken records; reads every record, but of images only the headers."""
    chunks: list[IndexTable] = []
    broken: list[tuple[str, str]] = []
    locations = source.locations(passed_over)
    progress = tqdm.tqdm(locations, f'index of {source.name}', unit='', disable=None)
    locations = iter(progress)
    scan = functools.partial(_scan_record, source, max_pixels)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(itertools.islice(locations, CHUNK)):
            names, sizes, reasons, animated = zip(*pool.map(scan, chunk), strict=True)
            keys = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
            chunks.append(IndexTable(np.array(chunk, np.int64), np.array(sizes, np.int32), keys))
            pairs = zip(names, reasons, strict=True)
            broken += [(name, reason) for name, reason in pairs if reason]
            for name in itertools.compress(names, animated):
                passed_over.add(LATER_FRAMES, name)
    if not chunks:
        return IndexTable(*(np.zeros(0, np.int64),) * 3), broken
    return IndexTable(*map(np.concatenate, zip(*chunks, strict=True))), broken


def _scan_record(
    source: Source, max_pixels: int, location: RecordLocation
) -> tuple[str, Any, str, bool]:
    """(name, (height, width), '', animated) of a record; of a broken one (0, 0) and the reason."""
    name = source.record_name(location)
    try:
        record = source.read(location)
        if record.captions is not None and not record.captions.usable:
            raise BrokenRecord('its caption is empty')
        try:
            stream = record.open_image()
        except OSError as error:
            raise BrokenRecord(f'{error.filename}: {error.strerror}') from None
        header = read_header(stream, max_pixels)
        return name, header.size, '', header.animated
    except BrokenRecord as error:
        return name, (0, 0), str(error), False
