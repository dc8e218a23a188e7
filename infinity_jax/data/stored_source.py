"""Sources of stored records, opened together with their indexes."""

import dataclasses
import functools
import logging
from typing import Protocol

import numpy as np

from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.data.decode import MAX_PIXELS
from infinity_jax.data.features.reader import FeatureSource, Layout
from infinity_jax.data.index import Index, load_index
from infinity_jax.data.layouts import hint
from infinity_jax.data.records import Source
from infinity_jax.data.sources.arrow import ArrowSource
from infinity_jax.data.sources.folder import FolderSource
from infinity_jax.data.sources.imagefolder import ImagefolderSource
from infinity_jax.data.sources.jsonl import JsonlSource
from infinity_jax.data.sources.parquet import ParquetSource
from infinity_jax.data.sources.sidecar import SidecarSource
from infinity_jax.data.sources.tar import TarSource
from infinity_jax.data.sources.tfds import TfdsSource
from infinity_jax.errors import UserError


class Kind(Protocol):
    """A kind of source: a class whose `open` reads what a source's configuration names."""

    def open(self, config: SourceConfig) -> Source | FeatureSource: ...


STORED: dict[str, Kind] = {
    'arrow': ArrowSource,
    'features': FeatureSource,
    'folder': FolderSource,
    'imagefolder': ImagefolderSource,
    'jsonl': JsonlSource,
    'parquet': ParquetSource,
    'sidecar': SidecarSource,
    'tar': TarSource,
    'tfds': TfdsSource,
}
MAX_LOGGED = 20  # broken records per source that are named in the log


@dataclasses.dataclass(frozen=True, eq=False)
class StoredSource:
    """A source, its index, and the records that a split may use.

    Attributes:
      source: the source.
      index: its index.
      usable: bool (N,).
      max_pixels: an image of more pixels is a broken record.
    """

    source: Source | FeatureSource
    index: Index
    usable: np.ndarray
    max_pixels: int = MAX_PIXELS

    @property
    def layout(self) -> Layout | None:
        """The layout of stored features; None for images."""
        return self.source.info.layout if isinstance(self.source, FeatureSource) else None


def open_source(config: SourceConfig) -> Source | FeatureSource:
    """Opens a source of any kind but emoji, whose images are rendered and need no index.

    Raises:
      UserError: its folder has nothing of that kind.
    """
    if config.kind not in STORED:
        raise UserError(f'data source {config.kind!r} stores nothing; wanted {", ".join(STORED)}')
    try:
        return STORED[config.kind].open(config)
    except UserError as error:
        raise UserError(f'{error}{hint(config)}') from None


def open_stored(config: SourceConfig, data: DataConfig, split: str) -> StoredSource:
    """Opens a source with its index.

    Where both splits share a source, a checksum of a record's name decides its split.

    Raises:
      UserError: the source cannot be read.
    """
    source = open_source(config)
    index = load_index(source, data.index_dir, data.max_image_pixels)
    usable = np.ones(len(index), bool)
    if not data.held_out:
        held_out = index.keys < data.held_out_share * 2.0**32
        usable = held_out if split == 'held_out' else ~held_out
    return StoredSource(source, index, usable, data.max_image_pixels)


def open_all(data: DataConfig, split: str) -> list[StoredSource | None]:
    """Opens the sources of a split; None for emoji.

    Raises:
      UserError: a source cannot be read, or too many of its records are broken.
    """
    opened = []
    for config in data.sources_of(split):
        stored = None if config.kind == 'emoji' else open_stored(config, data, split)
        if stored is not None:
            check_broken(stored, config, data.max_broken_share)
        opened.append(stored)
    return opened


def check_broken(stored: StoredSource, config: SourceConfig, max_share: float) -> None:
    """Logs the records and files that the index lists as broken.

    Args:
      stored: the source.
      config: its configuration, for advice.
      max_share: of broken records, and of those in damaged files.

    Raises:
      UserError: their records are more than `max_share` of the source.
    """
    index, name = stored.index, stored.source.name
    lost, total = index.lost, index.total
    if not lost:
        return
    first = [f'{file}: {reason}' for file, reason, _ in index.damaged]
    first += [f'{record}: {reason}' for record, reason in index.broken[:1]]
    if lost == total:
        raise UserError(
            f'{name}: all {total} records are broken, the first: {first[0]}; correct the files or '
            f'the fields of the source{hint(config)}'
        )
    if lost > max_share * total:
        files = f', with about {lost - len(index.broken)} in damaged files' if index.damaged else ''
        raise UserError(
            f'{name}: {lost} of {total} records are broken{files}, more than '
            f'data.max_broken_share {max_share}, the first: {first[0]}; repair them '
            '(`infinity-jax data inspect` lists them) or raise data.max_broken_share'
        )
    _log_broken(index, name)


@functools.cache  # several iterators of a process read the same source
def _log_broken(index: Index, source: str) -> None:
    logger = logging.getLogger(__name__)
    for file, reason, records in index.damaged:
        logger.warning(
            '%s: file left out, with about %d records: %s: %s', source, records, file, reason
        )
    for record, reason in index.broken[:MAX_LOGGED]:
        logger.warning('%s: broken record left out: %s: %s', source, record, reason)
    logger.warning(
        '%s: %d of %d records left out, all named in %s',
        source, index.lost, index.total, index.folder,
    )  # fmt: skip
