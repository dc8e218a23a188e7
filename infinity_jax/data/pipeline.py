"""The grain pipeline: reads records, sorts them into buckets of one image shape, makes batches.

Batch i of all hosts together follows from the configuration, the seed and i alone: a run has to
remember only how many batches it has read, and neither the number of hosts nor that of workers
changes the order. Each host reads its slice of every batch. The batch's bucket follows from i and
the shares of the buckets.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np
from absl import flags

from infinity_jax.data.agreement import agreed_buckets
from infinity_jax.data.batch import Batch, Example
from infinity_jax.data.buckets import Part, make_buckets
from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.config import DataConfig
from infinity_jax.data.decode import Crop, decode
from infinity_jax.data.features.reader import FeatureSource
from infinity_jax.data.records import BrokenRecord, RecordLocation
from infinity_jax.data.sources.emoji import EmojiSource
from infinity_jax.data.stored_source import StoredSource
from infinity_jax.errors import UserError
from infinity_jax.runtime.worker_signals import leave_signals_to_parent

MAX_TRIES = 100  # broken records in a row that stop a run at once
MIN_READ = 1000  # the broken share is taken of at least so many records

# (captions, max_length, pad_to) -> ids_BT, lengths_B, as `text.TextTokenizer`
TextTokenizer = Callable[[list[str], int, int], tuple[np.ndarray, np.ndarray]]
BrokenRecords = list[tuple[str, str]]  # (name, reason) of each


class RandomAccess(Protocol):
    """A source of items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ReadRecord:
    """Reads and decodes a record; a broken one is replaced by the next good one of its bucket.

    A class so that it can be sent to worker processes.

    Attributes:
      stored: the source.
      records: int64, the numbers of the bucket's records in the source's index.
      size: (Y, X) of the images, in pixels.
      short_captions: probability of a short caption.
      smallest_crop: share of the largest crop's edge; 1: always the largest crop, at the centre.
    """

    stored: StoredSource
    records: np.ndarray
    size: tuple[int, int]
    short_captions: float
    smallest_crop: float = 1.0

    def __call__(self, position: int, rng: np.random.Generator) -> Example:
        source = self.stored.source
        broken: BrokenRecords = []
        for turn in range(min(MAX_TRIES, len(self.records))):
            record = self.records[(position + turn) % len(self.records)]
            location = tuple(self.stored.index.locations[record].tolist())
            try:
                return self._example(location, rng)._replace(broken=tuple(broken))
            except (BrokenRecord, OSError) as error:
                broken.append((f'{source.name}: {source.record_name(location)}', str(error)))
        raise UserError(
            f'{len(broken)} records in a row are broken, the last {broken[-1][0]}: '
            f'{broken[-1][1]}; check that all of the data is still there'
        )

    def _example(self, location: RecordLocation, rng: np.random.Generator) -> Example:
        source = self.stored.source
        if not isinstance(source, FeatureSource):
            raw, limit = source.read(location), self.stored.max_pixels
            caption = self._caption(raw.captions, rng)
            return Example(caption, decode(raw.open_image(), self.size, self._crop(rng), limit))
        record = source.read(location)
        caption = self._caption(record.captions, rng)
        text_TE = record.text(caption) if source.info.text else None
        return Example(caption, features_hwd=record.features, text_TE=text_TE)

    def _caption(self, captions: RecordCaptions | None, rng: np.random.Generator) -> str:
        if captions is None:
            return ''
        caption = captions.sample(rng, self.short_captions)
        if not caption:
            raise BrokenRecord('its caption is empty')
        return caption

    def _crop(self, rng: np.random.Generator) -> Crop | None:
        if self.smallest_crop == 1:
            return None
        return Crop(rng.uniform(self.smallest_crop, 1), rng.random(), rng.random())


@dataclasses.dataclass(frozen=True)
class Collate:
    """Stacks examples to a batch; a class so that it can be sent to worker processes.

    Attributes:
      text_tokenizer: encodes captions that have no stored features; None: they stay texts.
      text_length: T.
    """

    text_tokenizer: TextTokenizer | None
    text_length: int

    def __call__(self, examples: Sequence[Example]) -> tuple[Batch, BrokenRecords]:
        """The batch, and the broken records that its examples replace."""
        captions = [example.caption for example in examples]
        batch = Batch(
            pixels_BYX3=_stacked([example.pixels_YX3 for example in examples]),
            features_Bhwd=_stacked([example.features_hwd for example in examples]),
            captions=captions,
        )
        texts = [example.text_TE for example in examples if example.text_TE is not None]
        if texts:
            lengths_B = np.array([len(text) for text in texts], np.int32)
            batch = batch._replace(text_BTE=_padded(texts, self.text_length), lengths_B=lengths_B)
        elif self.text_tokenizer is not None:
            ids_BT, lengths_B = self.text_tokenizer(captions, self.text_length, self.text_length)
            batch = batch._replace(
                ids_BT=np.asarray(ids_BT, np.int32), lengths_B=np.asarray(lengths_B, np.int32)
            )
        return batch, [record for example in examples for record in example.broken]


def _stacked(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    present = [array for array in arrays if array is not None]
    return np.stack(present) if present else None


def _padded(texts: list[np.ndarray], length: int) -> np.ndarray:
    """Text features (T, E) of different T as rows of one array, padded with zeros."""
    text_BTE = np.zeros((len(texts), length, texts[0].shape[1]), texts[0].dtype)
    for row_TE, text_TE in zip(text_BTE, texts, strict=True):
        row_TE[: len(text_TE)] = text_TE
    return text_BTE


class CountBroken:
    """Logs and counts broken records, in the main process, whichever process read them."""

    def __init__(self, max_share: float, fate: str = 'replaced'):
        """Starts at zero.

        Args:
          max_share: largest share of broken records among all that were read.
          fate: for the log: 'replaced' or 'left out'.
        """
        self.max_share, self.fate = max_share, fate
        self.read = self.broken = 0
        self._logged: set[str] = set()

    def __call__(self, good: int, broken: Sequence[tuple[str, str]]) -> None:
        """Adds `good` records that were read and the (name, reason) of each broken one.

        Raises:
          UserError: the broken records have become too many.
        """
        self.broken += len(broken)
        self.read += good + len(broken)
        for name, reason in broken:
            if name not in self._logged:
                self._logged.add(name)
                logging.getLogger(__name__).warning(
                    'broken record %s: %s: %s (%d of %d read)',
                    self.fate, name, reason, self.broken, self.read,
                )  # fmt: skip
        if self.broken > self.max_share * max(self.read, MIN_READ):
            raise UserError(
                f'{self.broken} of {self.read} records read were broken, more than '
                f'data.max_broken_share {self.max_share}, the last {name}: {reason}; repair them '
                'or raise data.max_broken_share'
            )


class Batches(Iterator[Batch]):
    """An endless iterator over batches, which can be moved to any of them.

    Args:
      dataset: (batch, broken records) by number.
      num_workers: processes that read while the main one trains; 0: two threads of the main one.
      count_broken: called in the main process for every batch.
    """

    def __init__(
        self, dataset: grain.MapDataset, num_workers: int, count_broken: Callable[..., None]
    ):
        self._dataset, self._num_workers = dataset, num_workers
        self._count_broken = count_broken
        self._start = 0
        self._reading: grain.DatasetIterator | None = None

    def move_to(self, number: int) -> None:
        """Makes batch `number`, from 0, the next one."""
        self.close()
        self._start = number

    def __next__(self) -> Batch:
        if self._reading is None:
            # A thread makes a whole batch, so a few batches of prefetch are enough.
            dataset = self._dataset[self._start :]
            self._reading = start_reading(dataset, self._num_workers, threads=2)
        batch, broken = next(self._reading)
        self._count_broken(len(batch.captions), broken)
        return batch

    def close(self) -> None:
        """Ends the worker processes."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None


def start_reading(
    dataset: grain.MapDataset, num_workers: int, *, threads: int
) -> grain.DatasetIterator:
    """Starts to read a dataset in order, ahead of its use; the caller closes the iterator.

    Args:
      num_workers: processes, of one thread each; 0: `threads` threads of this process.
    """
    options = grain.ReadOptions(num_threads=1 if num_workers else threads, prefetch_buffer_size=4)
    iterable = dataset.to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # grain starts workers with the flags of absl
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)
        iterable = iterable.mp_prefetch(workers, leave_signals_to_parent)
    return iter(iterable)


def endless(source: RandomAccess, seed: int, *, shuffle: bool = True) -> grain.MapDataset:
    """The items of a random-access source, repeated without end.

    Every epoch has its own order; with `shuffle` False the order of the source.
    """
    dataset = grain.MapDataset.source(source).seed(seed)
    return (dataset.shuffle() if shuffle else dataset).repeat(None)


def training_batches(
    data: DataConfig = DataConfig(),
    *,
    split: str = 'train',
    batch_size: int,
    seed: int = 0,
    text_tokenizer: TextTokenizer | None = None,
    text_length: int = 32,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Batches:
    """An endless iterator over the batches of a split.

    To resume, move to the number of batches that the run has read; the number of hosts and workers
    may have changed. Worker processes need a `__main__` guard.

    Args:
      data: sources, image shapes, workers.
      split: 'train' or 'held_out'.
      batch_size: images in a batch of all hosts together. This host gets its slice; the slices of
        all hosts, one after the other, are the batch that a single host would read.
      seed: decides order, crops and captions.
      text_tokenizer: encodes captions; None: they stay texts.
      text_length: T of `ids_BT`.
      process_index, process_count: of this host and of all; by default those of JAX.

    Raises:
      UserError: the data cannot be used as configured; later, too many records are broken.
    """
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f'batch_size {batch_size} does not divide over {process_count} hosts; '
            f'use a multiple of {process_count}'
        )
    # Evaluation may see an image twice; in training a bucket smaller than a batch is a mistake.
    smallest = batch_size if split == 'train' else 1
    make = functools.partial(make_buckets, data, split, smallest=smallest, seed=seed)
    buckets, batched = agreed_buckets(make), []
    for bucket in buckets:
        parts = [_examples(part, bucket.size, data, seed) for part in bucket.parts]
        mixed = _mix(parts, [part.share for part in bucket.parts])
        stored_length = bucket.layout.text_length if bucket.layout else 0
        collate = Collate(text_tokenizer, stored_length or text_length)
        # Nothing is read before a batch is requested, so other hosts' slices cost nothing. Slicing
        # comes before mixing the buckets: hosts must see the same shape at the same step.
        slices = mixed.batch(batch_size // process_count, drop_remainder=True, batch_fn=collate)
        batched.append(slices[process_index::process_count])
    dataset = _mix(batched, [bucket.share for bucket in buckets])
    return Batches(dataset, data.num_workers, CountBroken(data.max_broken_share))


def _examples(part: Part, size: tuple[int, int], data: DataConfig, seed: int) -> grain.MapDataset:
    """A part's examples, read and decoded when they are requested."""
    # Rendered images: the source itself changes the order every epoch.
    if isinstance(part.source, EmojiSource):
        return endless(part.source, seed, shuffle=False)
    assert part.records is not None
    words = np.random.SeedSequence((seed, part.number, *size)).generate_state(1)
    order = endless(range(len(part.records)), int(words[0]))
    read = ReadRecord(part.source, part.records, size, data.short_captions, data.smallest_crop)
    return order.random_map(read)


def _mix(datasets: list[grain.MapDataset], shares: list[float]) -> grain.MapDataset:
    """Items of all datasets in a fixed rotation, by share."""
    return datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, shares)
