"""Which records go into which bucket of images of one shape, and how often each is drawn."""

import dataclasses
import functools
import logging
from collections.abc import Sequence

import numpy as np

from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.data.features.stored import FeatureSource, Layout
from infinity_jax.data.index import Index, load_index
from infinity_jax.data.records import Source
from infinity_jax.data.sources.registry import open_source
from infinity_jax.emoji.source import ENDLESS, EmojiSource
from infinity_jax.errors import UserError
from infinity_jax.scales import BUDGET_OF_EDGE, SQUARE, ScaleSchedule

NAMED = 20  # broken records of a source that are named in the log


@dataclasses.dataclass(frozen=True, eq=False)
class StoredSource:
    """A source, its index, and which of its records a split may use."""

    source: Source | FeatureSource
    index: Index
    usable: np.ndarray  # bool (N,)

    @property
    def layout(self) -> Layout | None:
        """Of stored features; None for images."""
        return self.source.info.layout if isinstance(self.source, FeatureSource) else None


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What one source gives to a bucket.

    Attributes:
      number: of the source in the configuration.
      source: where records come from.
      records: int64, their numbers in the source's index; None: drawn without end.
      share: of all images of a run.
    """

    number: int
    source: StoredSource | EmojiSource
    records: np.ndarray | None
    share: float


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
    """Images of one shape, or features of such; a batch never mixes two.

    Attributes:
      ratio: name of height/width.
      size: (Y, X) in pixels.
      layout: of stored features; None for images.
      parts: one or more, of different sources.
    """

    ratio: str
    size: tuple[int, int]
    layout: Layout | None
    parts: tuple[Part, ...]

    @property
    def share(self) -> float:
        """Of all images of a run."""
        return sum(part.share for part in self.parts)


def target_size(ratio: str, image_size: int) -> tuple[int, int]:
    """(Y, X) in pixels of a ratio's images, of about the area of the square.

    Raises:
      UserError: only squares are known for this `image_size`.
    """
    if ratio == SQUARE:
        return image_size, image_size
    if image_size not in BUDGET_OF_EDGE:
        raise UserError(
            f'data.image_size {image_size} is none of {", ".join(map(str, BUDGET_OF_EDGE))}, '
            f'for which grids of other ratios are known; change it or set data.ratios to {SQUARE}'
        )
    return ScaleSchedule.for_image(ratio, BUDGET_OF_EDGE[image_size]).image_size()


def nearest_ratios(sizes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """int (N,): for sizes (N, 2), which of the named ratios is nearest; −1 for a size of zeros."""
    ratio_N = sizes[:, 0] / np.maximum(sizes[:, 1], 1)
    nearest_N = np.zeros(len(sizes), np.int64)
    distance_N = np.full(len(sizes), np.inf)
    for i, name in enumerate(names):  # an array (N, ratios) would be large
        to_name_N = np.abs(float(name) - ratio_N)
        closer_N = to_name_N < distance_N
        nearest_N[closer_N], distance_N[closer_N] = i, to_name_N[closer_N]
    return np.where(sizes[:, 0] > 0, nearest_N, -1)


def open_stored(config: SourceConfig, data: DataConfig, split: str) -> StoredSource:
    """Opens a source with its index. Where both splits share a source, names tell which is whose.

    Raises:
      UserError: it cannot be read.
    """
    source = open_source(config)
    index = load_index(source, data.index_dir)
    usable = np.ones(len(index), bool)
    if not data.held_out:
        held_out = index.keys < data.held_out_share * 2.0**32
        usable = held_out if split == 'held_out' else ~held_out
    return StoredSource(source, index, usable)


def check_broken(stored: StoredSource, max_share: float) -> None:
    """Logs the records that the index knows to be broken.

    Raises:
      UserError: they are more than `max_share` of the source.
    """
    broken, total, name = stored.index.broken, len(stored.index), stored.source.name
    if not broken:
        return
    first = f'{broken[0][0]}: {broken[0][1]}'
    if len(broken) > max_share * total:
        raise UserError(
            f'{name}: {len(broken)} of {total} records are broken, more than '
            f'data.max_broken_share {max_share}, the first: {first}; mend them (`infinity-jax data '
            'inspect` lists them) or raise it'
        )
    _name_broken(stored.index, name)


@functools.cache  # several iterators of a process read the same source
def _name_broken(index: Index, source: str) -> None:
    logger = logging.getLogger(__name__)
    for record, reason in index.broken[:NAMED]:
        logger.warning('%s: broken record left out: %s: %s', source, record, reason)
    logger.warning(
        '%s: %d of %d records left out, all named in %s',
        source, len(index.broken), len(index), index.folder / 'broken.json',
    )  # fmt: skip


def make_buckets(
    data: DataConfig,
    split: str,
    *,
    smallest: int,
    seed: int = 0,
    stored: Sequence[StoredSource | None] | None = None,
) -> list[Bucket]:
    """Sorts the records of all sources into buckets.

    A source gets its weight's share of all images; inside it, records of all buckets are drawn
    equally often, but for `ratio_weights`.

    Args:
      data: sources, ratios, weights.
      split: 'train' or 'held_out'.
      smallest: buckets of fewer records are left out.
      seed: of drawn images.
      stored: the opened sources, None for emoji; by default `open_all`.

    Raises:
      UserError: a source has no record in any bucket, or too many broken ones.
    """
    names, configs = data.bucket_names, data.sources_of(split)
    sizes = [target_size(name, data.image_size) for name in names]
    if stored is None:
        stored = open_all(data, split)
    emoji = [EmojiSource(c.subset, split, data.image_size, seed, c.placed_rate) for c in configs]
    sources = [e if s is None else s for e, s in zip(emoji, stored, strict=True)]
    layouts = [None if s is None else s.layout for s in stored]
    columns = [(b, layout) for b in range(len(names)) for layout in dict.fromkeys(layouts)]
    records = [
        _records(source, names, layout, columns)
        for source, layout in zip(sources, layouts, strict=True)
    ]
    counts = np.array([[ENDLESS if r is None else len(r) for r in row] for row in records])
    kept = np.where(counts.sum(0) < smallest, 0, counts)
    for config, had, has in zip(configs, counts, kept, strict=True):
        if not had.any() and split == 'held_out' and not data.held_out:
            raise UserError(
                f'data source {config.kind} {config.path} is so small that no record of it is held '
                f'out: raise data.held_out_share, now {data.held_out_share}, or name other sources '
                'in data.held_out'
            )
        if not has.any():
            raise UserError(
                f'data source {config.kind} {config.path} has {had.sum()} records for the {split} '
                f'split, but none in a bucket of {smallest} or more: lower batch_size, name fewer '
                'data.ratios, or add data'
            )
    _say_left_out(counts, kept, [names[b] for b, _ in columns], smallest)
    ratio_weights = data.ratio_weights or (1.0,) * len(names)
    shares = _shares(kept, [c.weight for c in configs], [ratio_weights[b] for b, _ in columns])
    buckets = []
    for column, (b, layout) in enumerate(columns):
        parts = tuple(
            Part(s, source, records[s][column], float(shares[s, column]))
            for s, source in enumerate(sources)
            if kept[s, column]
        )
        if parts:
            buckets.append(Bucket(names[b], sizes[b], layout, parts))
    return buckets


def open_all(data: DataConfig, split: str) -> list[StoredSource | None]:
    """The sources of a split, None for emoji.

    Raises:
      UserError: one cannot be read, or too many of its records are broken.
    """
    stored = []
    for config in data.sources_of(split):
        source = None if config.kind == 'emoji' else open_stored(config, data, split)
        if source is not None:
            check_broken(source, data.max_broken_share)
        stored.append(source)
    return stored


def _records(
    source: StoredSource | EmojiSource,
    names: Sequence[str],
    own: Layout | None,
    columns: Sequence[tuple[int, Layout | None]],
) -> list[np.ndarray | None]:
    """Of each column (ratio, layout) the source's record numbers; None: endless."""
    if isinstance(source, EmojiSource):
        of_ratio = [None if name == SQUARE else np.zeros(0, np.int64) for name in names]
    else:
        ratio_N = np.where(source.usable, nearest_ratios(source.index.sizes, names), -1)
        of_ratio = [np.flatnonzero(ratio_N == b) for b in range(len(names))]
    return [of_ratio[b] if layout == own else np.zeros(0, np.int64) for b, layout in columns]


def _shares(
    counts: np.ndarray, source_weights: Sequence[float], ratio_weights: Sequence[float]
) -> np.ndarray:
    """Of all images, the share of each source and column; counts are of the same shape."""
    weights = counts * np.array(ratio_weights)[None]
    weights = weights / weights.sum(1, keepdims=True) * np.array(source_weights)[:, None]
    return weights / weights.sum()


def _say_left_out(
    counts: np.ndarray, kept: np.ndarray, names: Sequence[str], smallest: int
) -> None:
    for name, had, has in zip(names, counts.sum(0), kept.sum(0), strict=True):
        if had > has:
            logging.getLogger(__name__).warning(
                'ratio %s: %d of %d records are in buckets below %d records and are left out',
                name, had - has, had, smallest,
            )  # fmt: skip
