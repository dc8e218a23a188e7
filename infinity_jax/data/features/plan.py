"""In which order a source's images are read to be turned into features, and the reading."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from infinity_jax.data.buckets import StoredSource, nearest_ratios
from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.decode import decode
from infinity_jax.data.index import Index
from infinity_jax.data.records import BrokenRecord
from infinity_jax.runtime.worker_signals import obey_parent_alone


@dataclasses.dataclass(frozen=True, eq=False)
class WorkItem:
    """Records of one shard and one image shape: a batch, or what is left of one."""

    shard: int
    bucket: int
    numbers: np.ndarray  # in the source's index


@dataclasses.dataclass(frozen=True, eq=False)
class ReadBatch:
    """What could be read of a `WorkItem`.

    Attributes:
      item: the item.
      numbers, names, sizes, captions: of the good records; sizes (height, width) as shown.
      pixels: uint8 (n, Y, X, 3).
      broken: (name, reason) of the others.
    """

    item: WorkItem
    numbers: tuple[int, ...]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    captions: tuple[RecordCaptions, ...]
    pixels: np.ndarray
    broken: tuple[tuple[str, str], ...]


def usable_records(index: Index) -> np.ndarray:
    """Numbers of the records that are not known to be broken, of every split."""
    return np.flatnonzero(np.asarray(index.sizes)[:, 0] > 0)


def plan(
    index: Index, ratios: Sequence[str], shard_records: int, batch_size: int, shards: Iterable[int]
) -> list[WorkItem]:
    """The work of some shards. A shard's items do not depend on which others are asked for."""
    usable = usable_records(index)
    bucket_N = nearest_ratios(index.sizes, ratios)
    items = []
    for shard in shards:
        own = usable[shard * shard_records : (shard + 1) * shard_records]
        for bucket in range(len(ratios)):
            numbers = own[bucket_N[own] == bucket]
            starts = range(0, len(numbers), batch_size)
            items += [WorkItem(shard, bucket, numbers[i : i + batch_size]) for i in starts]
    return items


@dataclasses.dataclass(frozen=True, eq=False)
class ReadImages:
    """Reads and decodes; a class so that worker processes can receive it.

    Attributes:
      stored: the source.
      sizes: (Y, X) of each bucket's images.
    """

    stored: StoredSource
    sizes: tuple[tuple[int, int], ...]

    def __call__(self, item: WorkItem) -> ReadBatch:
        source, size = self.stored.source, self.sizes[item.bucket]
        good: list[tuple[Any, ...]] = []
        broken = []
        for number in item.numbers.tolist():
            place = tuple(self.stored.index.places[number].tolist())
            name = source.record_name(place)
            try:
                raw = source.read(place)
                pixels_YX3 = decode(raw.open_image(), size)
                whole = tuple(self.stored.index.sizes[number].tolist())
                good.append((number, name, whole, raw.captions, pixels_YX3))
            except (BrokenRecord, OSError) as error:
                broken.append((f'{source.name}: {name}', str(error)))
        *columns, pixels = zip(*good, strict=True) if good else ((),) * 5
        pixels_BYX3 = np.stack(pixels) if good else np.zeros((0, *size, 3), np.uint8)
        return ReadBatch(item, *columns, pixels_BYX3, tuple(broken))


def read_ahead(items: list[WorkItem], read: ReadImages, workers: int) -> grain.DatasetIterator:
    """Images of all items, in order; to be closed."""
    dataset = grain.MapDataset.source(items).map(read)
    options = grain.ReadOptions(num_threads=1 if workers else 4, prefetch_buffer_size=4)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # workers are started with them
            flags.FLAGS.mark_as_parsed()
        several = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
        iterable = iterable.mp_prefetch(several, obey_parent_alone)
    return iter(iterable)
