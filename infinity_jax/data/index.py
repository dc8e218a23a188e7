"""What must be known of all records before training: sizes of images, and what is broken.

Made once and kept in a folder whose name is a digest of the source and its files, so that changed
files lead to a new one:

    places.npy   int64 (N, k), where each record lies
    sizes.npy    int32 (N, 2), height and width as shown, zeros where broken
    keys.npy     uint32 (N,), checksum of the record's name
    broken.json  [[name, reason], …]
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

from infinity_jax.data.decode import upright_size
from infinity_jax.data.features.stored import FeatureSource
from infinity_jax.data.records import BrokenRecord, RecordLocation, Source
from infinity_jax.errors import UserError
from infinity_jax.runtime.atomic_write import atomic_folder

VERSION = 2  # of what is stored, and of what is found broken
THREADS = 8  # that wait for files
CHUNK = 8192  # records handed to them at once


@dataclasses.dataclass(frozen=True)
class Index:
    """A stored index; arrays are mapped into memory when first read."""

    folder: pathlib.Path

    @functools.cached_property
    def places(self) -> np.ndarray:
        return np.load(self.folder / 'places.npy', mmap_mode='r')

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        return np.load(self.folder / 'sizes.npy', mmap_mode='r')

    @functools.cached_property
    def keys(self) -> np.ndarray:
        return np.load(self.folder / 'keys.npy', mmap_mode='r')

    @functools.cached_property
    def broken(self) -> list[tuple[str, str]]:
        """(name, reason) of each record that is known to be broken."""
        return [tuple(pair) for pair in json.loads((self.folder / 'broken.json').read_text())]

    def __len__(self) -> int:
        return len(self.sizes)

    def __reduce__(self):
        return Index, (self.folder,)  # a worker process maps the arrays itself


def load_index(source: Source | FeatureSource, folder: str | os.PathLike) -> Index:
    """The index of a source, made where `folder` holds none of its present files.

    Raises:
      UserError: a file of the source cannot be read, or the folder not written.
    """
    target = pathlib.Path(folder) / f'{type(source).__name__.lower()}-{_digest(source)}'
    if not target.exists():
        try:
            # Other hosts that share the folder may make the same index at the same time.
            with atomic_folder(target, keep_existing=True) as temporary:
                _write(temporary, source)
        except OSError as error:
            raise UserError(
                f'the index of {source.name} cannot be made in {folder}: {error}; set '
                'data.index_dir to a folder that can be written'
            ) from None
    return Index(target)


def _digest(source: Source | FeatureSource) -> str:
    files = []
    for path in source.files():
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f'{source.name}: {path}: {error.strerror}; mend the source') from None
        files.append((str(path), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr((VERSION, source, files)).encode()).hexdigest()[:16]


def _write(folder: pathlib.Path, source: Source | FeatureSource) -> None:
    if isinstance(source, FeatureSource):  # looked at when they were made
        columns, broken = source.table(), []
    else:
        columns, broken = _scanned(source)
    if not len(columns['sizes']):
        raise UserError(f'{source.name} holds no record; name another folder')
    for name, array in columns.items():
        np.save(folder / f'{name}.npy', array)
    (folder / 'broken.json').write_text(json.dumps(broken))


def _scanned(source: Source) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    """The index's columns and the broken records; reads every record, of images the headers."""
    columns: dict[str, list[np.ndarray]] = {'places': [], 'sizes': [], 'keys': []}
    broken = []
    places = iter(tqdm.tqdm(source.places(), f'index of {source.name}', unit='', disable=None))
    scan = functools.partial(_scan, source)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(itertools.islice(places, CHUNK)):
            names, sizes, reasons = zip(*pool.map(scan, chunk), strict=True)
            columns['places'].append(np.array(chunk, np.int64))
            columns['sizes'].append(np.array(sizes, np.int32))
            columns['keys'].append(np.array([zlib.crc32(n.encode()) for n in names], np.uint32))
            pairs = zip(names, reasons, strict=True)
            broken += [(name, reason) for name, reason in pairs if reason]
    empty = [np.zeros(0, np.int64)]
    return {name: np.concatenate(arrays or empty) for name, arrays in columns.items()}, broken


def _scan(source: Source, place: RecordLocation) -> tuple[str, Any, str]:
    """(name, (height, width), '') of a record, or zeros and why it is broken."""
    name = source.record_name(place)
    try:
        record = source.read(place)
        if record.captions is not None and not record.captions.usable:
            raise BrokenRecord('its caption is empty')
        try:
            stream = record.open_image()
        except OSError as error:
            raise BrokenRecord(f'{error.filename}: {error.strerror}') from None
        return name, upright_size(stream), ''
    except BrokenRecord as error:
        return name, (0, 0), str(error)
