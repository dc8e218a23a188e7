"""Batches of images to compute features from: their order, and reading them ahead of use."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import grain
import numpy as np

from infinity_jax.data.buckets import nearest_ratios
from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.decode import decode
from infinity_jax.data.index import Index
from infinity_jax.data.pipeline import start_reading
from infinity_jax.data.records import BrokenRecord, RawRecord
from infinity_jax.data.stored_source import StoredSource


@dataclasses.dataclass(frozen=True, eq=False)
class WorkItem:
    """Records of one shard and one image shape, at most a batch of them."""

    shard: int
    bucket: int
    numbers: np.ndarray  # of the records in the source's index


@dataclasses.dataclass(frozen=True, eq=False)
class ImageBatch:
    """The records of a `WorkItem`, read and decoded.

    Attributes:
      item: the work item.
      numbers, names, sizes, captions: of each good record; sizes are (height, width) as shown.
      pixels: uint8 (n, Y, X, 3), of the good records.
      broken: (name, reason) of each broken record.
    """

    item: WorkItem
    numbers: tuple[int, ...]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    captions: tuple[RecordCaptions, ...]
    pixels: np.ndarray
    broken: tuple[tuple[str, str], ...]


def usable_records(index: Index) -> np.ndarray:
    """Numbers of the records that the index does not list as broken, of every split."""
    return np.flatnonzero(np.asarray(index.sizes)[:, 0] > 0)


def work_items(
    index: Index, ratios: Sequence[str], shard_records: int, batch_size: int, shards: Iterable[int]
) -> list[WorkItem]:
    """The work items of some shards; those of a shard do not depend on the other shards."""
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
    """Reads and decodes a work item; a class so that it can be sent to worker processes.

    Attributes:
      stored: the source.
      sizes: (Y, X) of each bucket's images.
    """

    stored: StoredSource
    sizes: tuple[tuple[int, int], ...]

    def __call__(self, item: WorkItem) -> ImageBatch:
        source, size = self.stored.source, self.sizes[item.bucket]
        good: list[tuple[Any, ...]] = []
        broken = []
        for number in item.numbers.tolist():
            location = tuple(self.stored.index.locations[number].tolist())
            name = source.record_name(location)
            try:
                raw = source.read(location)
                assert isinstance(raw, RawRecord), 'features are not encoded again'
                pixels_YX3 = decode(raw.open_image(), size, max_pixels=self.stored.max_pixels)
                whole = tuple(self.stored.index.sizes[number].tolist())
                good.append((number, name, whole, raw.captions, pixels_YX3))
            except (BrokenRecord, OSError) as error:
                broken.append((f'{source.name}: {name}', str(error)))
        columns = zip(*good, strict=True) if good else ((),) * 5
        numbers, names, sizes, captions, pixels = columns
        pixels_BYX3 = np.stack(pixels) if good else np.zeros((0, *size, 3), np.uint8)
        return ImageBatch(item, numbers, names, sizes, captions, pixels_BYX3, tuple(broken))


def read_images(items: list[WorkItem], read: ReadImages, num_workers: int) -> grain.DatasetIterator:
    """Starts to read the images of all items, in order; the caller closes the iterator."""
    return start_reading(grain.MapDataset.source(items).map(read), num_workers, threads=4)
