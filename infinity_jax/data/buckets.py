"""Sorts records into buckets of one image shape, and sets the share of images of each bucket."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from infinity_jax.data.config import DataConfig
from infinity_jax.data.features.reader import Layout
from infinity_jax.data.index import Index
from infinity_jax.data.layouts import hint
from infinity_jax.data.sources.emoji import ENDLESS, EmojiSource
from infinity_jax.data.stored_source import StoredSource, open_all
from infinity_jax.errors import UserError
from infinity_jax.scales import BUDGET_OF_EDGE, SQUARE, ScaleSchedule


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The records of one source that belong to a bucket.

    Attributes:
      number: the source's number in the configuration.
      source: the source.
      records: int64, numbers of the records in the source's index; None: an endless source.
      share: of all images of a run.
    """

    number: int
    source: StoredSource | EmojiSource
    records: np.ndarray | None
    share: float


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
    """Records whose images, or features of images, have one shape; a batch is of one bucket.

    Attributes:
      ratio: name of height/width.
      size: (Y, X) in pixels.
      layout: layout of stored features; None for images.
      parts: one or more, each of another source.
    """

    ratio: str
    size: tuple[int, int]
    layout: Layout | None
    parts: tuple[Part, ...]

    @property
    def share(self) -> float:
        """The bucket's share of all images of a run."""
        return sum(part.share for part in self.parts)


def target_size(ratio: str, image_size: int) -> tuple[int, int]:
    """(Y, X) in pixels of the images of a ratio; their area is about that of the square.

    Args:
      ratio: name of height/width.
      image_size: edge of the square, in pixels.

    Raises:
      UserError: there are only squares for this `image_size`.
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
    """Finds the nearest named ratio of each image.

    Args:
      sizes: (N, 2), heights and widths.
      names: of height/width.

    Returns:
      int (N,), numbers in `names`; −1 for a size of zeros.
    """
    ratio_N = sizes[:, 0] / np.maximum(sizes[:, 1], 1)
    nearest_N = np.zeros(len(sizes), np.int64)
    distance_N = np.full(len(sizes), np.inf)
    for i, name in enumerate(names):  # an array (N, ratios) would be large
        to_name_N = np.abs(float(name) - ratio_N)
        closer_N = to_name_N < distance_N
        nearest_N[closer_N], distance_N[closer_N] = i, to_name_N[closer_N]
    return np.where(sizes[:, 0] > 0, nearest_N, -1)


def make_buckets(
    data: DataConfig,
    split: str,
    *,
    smallest: int,
    seed: int = 0,
    stored: Sequence[StoredSource | None] | None = None,
) -> list[Bucket]:
    """Sorts the records of all sources into buckets.

    A source gets the share of all images that its weight states; inside it all records are used
    equally often, unless `ratio_weights` prefers a bucket.

    Args:
      data: sources, ratios, weights.
      split: 'train' or 'held_out'.
      smallest: buckets of fewer records are left out, unless `data.repeat_records`.
      seed: of rendered images.
      stored: the opened sources, None for emoji; by default those of `open_all`.

    Raises:
      UserError: a source has no record in any bucket, or too many broken ones.
    """
    names, configs = data.bucket_names, data.sources_of(split)
    sizes = [target_size(name, data.image_size) for name in names]
    stored = open_all(data, split) if stored is None else stored
    emoji = [
        EmojiSource(c.subset, split, data.image_size, seed, c.placed_rate, c.scenes, c.scene_subset)
        for c in configs
    ]
    sources = [e if s is None else s for e, s in zip(emoji, stored, strict=True)]
    layouts = [None if s is None else s.layout for s in stored]
    columns = [(b, layout) for b in range(len(names)) for layout in dict.fromkeys(layouts)]
    records = [
        _records(source, names, layout, columns)
        for source, layout in zip(sources, layouts, strict=True)
    ]
    counts = np.array([[ENDLESS if r is None else len(r) for r in row] for row in records])
    kept = np.where(counts.sum(0) < (1 if data.repeat_records else smallest), 0, counts)
    _check_counts(data, split, sources, counts, kept)
    _log_left_out(counts, kept, [names[b] for b, _ in columns], smallest)
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


def _records(
    source: StoredSource | EmojiSource,
    names: Sequence[str],
    own: Layout | None,
    columns: Sequence[tuple[int, Layout | None]],
) -> list[np.ndarray | None]:
    """The source's record numbers for each column (ratio, layout); None: endless."""
    if isinstance(source, EmojiSource):
        of_ratio = [None if name == SQUARE else np.zeros(0, np.int64) for name in names]
    else:
        ratio_N = np.where(source.usable, nearest_ratios(source.index.sizes, names), -1)
        of_ratio = [np.flatnonzero(ratio_N == b) for b in range(len(names))]
    return [of_ratio[b] if layout == own else np.zeros(0, np.int64) for b, layout in columns]


def _check_counts(
    data: DataConfig,
    split: str,
    sources: Sequence[StoredSource | EmojiSource],
    counts: np.ndarray,
    kept: np.ndarray,
) -> None:
    """Raises `UserError` for a source without records, or without any in the buckets kept."""
    rows = zip(data.sources_of(split), sources, counts, kept, strict=True)
    for config, source, had, has in rows:
        if has.any():
            continue
        name = f'data source {config.kind} {config.path}'
        index = source.index if isinstance(source, StoredSource) else None
        if index is not None and index.lost == index.total:
            raise UserError(
                f'{name}: all {index.total} records are broken (`infinity-jax data inspect` lists '
                f'them); correct the files or the fields of the source{hint(config)}'
            )
        if not had.any():
            raise UserError(f'{name} {_too_small(data, split, index)}')
        raise UserError(
            f'{name} has {had.sum()} records for the {split} split, at most {had.max()} of one '
            'ratio, and no bucket has enough for a batch: lower batch_size, name fewer '
            "data.ratios, such as ('1.000',), add data, or set data.repeat_records to True"
        )


def _too_small(data: DataConfig, split: str, index: Index | None) -> str:
    """Why a source has no record of a split, and what to set."""
    if data.held_out or index is None:
        return f'has no record of data.ratios {data.ratios} for the {split} split; name others'
    good_N = np.sort(index.keys[np.asarray(index.sizes)[:, 0] > 0])
    if split == 'train':
        return (
            f'has {len(good_N)} records, all of which are held out: lower data.held_out_share, now '
            f'{data.held_out_share}'
        )
    same = 'name sources in data.held_out, such as those of data.sources to evaluate on them'
    if len(good_N) < 2:
        return f'has a single record, which cannot be held out: {same}'
    # One record is held out from its own key on.
    share = np.ceil((float(good_N[0]) + 1) / 2.0**32 * 1e4) / 1e4
    return (
        f'is so small that none of its {len(good_N)} records is held out: raise '
        f'data.held_out_share, now {data.held_out_share}, to {share:g} or more, or {same}'
    )


def _shares(
    counts: np.ndarray, source_weights: Sequence[float], ratio_weights: Sequence[float]
) -> np.ndarray:
    """The share of each source and column in all images; shaped as `counts`."""
    weights = counts * np.array(ratio_weights)[None]
    weights = weights / weights.sum(1, keepdims=True) * np.array(source_weights)[:, None]
    return weights / weights.sum()


def _log_left_out(
    counts: np.ndarray, kept: np.ndarray, names: Sequence[str], smallest: int
) -> None:
    for name, had, has in zip(names, counts.sum(0), kept.sum(0), strict=True):
        if had > has:
            logging.getLogger(__name__).warning(
                'ratio %s: %d of %d records are in buckets below %d records and are left out',
                name, had - has, had, smallest,
            )  # fmt: skip
