"""The grain pipeline: from records, sorted into buckets, to batches.

A record is `{'pixels': uint8 (Y, X, 3), 'caption': str}`. Pixels stay uint8 until the jitted step
(`pixels / 127.5 - 1`): a quarter of the bytes to copy. A batch, all of one image shape, is

    {'pixels_BYX3': uint8 (B, Y, X, 3), 'captions': list of B str,
     'ids_BT': int32 (B, T), 'lengths_B': int32 (B,)}   # the last two with a text tokenizer

Stored features come as `{'features': (h, w, d), 'caption': str}` and perhaps 'text': (T, E). Their
batches have 'features_Bhwd' instead of pixels, and 'text_BTE' instead of ids where it was stored.

Batch i of all hosts together follows from the configuration, the seed and i alone: the number of
batches read is all that a run has to remember, and neither hosts nor workers change the order. A
host reads its slice of every batch; the batch's bucket follows from i and the buckets' shares.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from infinity_jax.data.buckets import Part, StoredSource, make_buckets
from infinity_jax.data.config import DataConfig
from infinity_jax.data.decode import Crop, decode
from infinity_jax.data.features.stored import FeatureSource
from infinity_jax.data.records import BrokenRecord, RawRecord, RecordLocation
from infinity_jax.errors import UserError
from infinity_jax.runtime.worker_signals import obey_parent_alone

MAX_TRIES = 100  # broken records in a row that stop a run at once
JUDGED_FROM = 1000  # records read before their broken share is judged by itself

# (captions, max_length, pad_to) -> ids_BT, lengths_B, as `text.TextTokenizer`
TextTokenizer = Callable[[list[str], int, int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class ReadRecord:
    """Reads and decodes a record; a broken one is replaced by the next good one of its bucket.

    A class so that worker processes can receive it.

    Attributes:
      stored: the source.
      records: int64, the bucket's.
      size: (Y, X) of the images.
      short_captions: probability of a short caption.
      smallest_crop: share of the largest crop's edge; 1: that crop, at the centre.
    """

    stored: StoredSource
    records: np.ndarray
    size: tuple[int, int]
    short_captions: float
    smallest_crop: float = 1.0

    def __call__(self, position: int, rng: np.random.Generator) -> dict[str, Any]:
        source, broken = self.stored.source, []
        for turn in range(min(MAX_TRIES, len(self.records))):
            record = self.records[(position + turn) % len(self.records)]
            place = tuple(self.stored.index.places[record].tolist())
            try:
                return {**self._item(place, rng), 'broken': broken}
            except (BrokenRecord, OSError) as error:
                broken.append((f'{source.name}: {source.record_name(place)}', str(error)))
        raise UserError(
            f'{len(broken)} records in a row are broken, the last {broken[-1][0]}: '
            f'{broken[-1][1]}; see whether all of the data is still there'
        )

    def _item(self, place: RecordLocation, rng: np.random.Generator) -> dict[str, Any]:
        source = self.stored.source
        record = source.read(place)
        caption = self._caption(record, rng)
        if not isinstance(source, FeatureSource):
            pixels = decode(record.open_image(), self.size, self._crop(rng))
            return {'pixels': pixels, 'caption': caption}
        item = {'features': record.features, 'caption': caption}
        return {**item, 'text': record.text(caption)} if source.info.text else item

    def _caption(self, record: RawRecord, rng: np.random.Generator) -> str:
        if record.captions is None:
            return ''
        caption = record.captions.choose(rng, self.short_captions)
        if not caption:
            raise BrokenRecord('its caption is empty')
        return caption

    def _crop(self, rng: np.random.Generator) -> Crop | None:
        if self.smallest_crop == 1:
            return None
        return Crop(rng.uniform(self.smallest_crop, 1), rng.random(), rng.random())


@dataclasses.dataclass(frozen=True)
class Collate:
    """Stacks records to a batch; a class so that worker processes can receive it."""

    text_tokenizer: TextTokenizer | None
    text_length: int

    def __call__(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        texts = [record['caption'] for record in records]
        kind, name = ('pixels', 'pixels_BYX3')
        if 'features' in records[0]:
            kind, name = ('features', 'features_Bhwd')
        batch: dict[str, Any] = {name: np.stack([record[kind] for record in records])}
        batch['captions'] = texts
        if 'text' in records[0]:
            batch |= _padded([record['text'] for record in records], self.text_length)
        elif self.text_tokenizer is not None:
            ids_BT, lengths_B = self.text_tokenizer(texts, self.text_length, self.text_length)
            batch['ids_BT'] = np.asarray(ids_BT, np.int32)
            batch['lengths_B'] = np.asarray(lengths_B, np.int32)
        batch['broken'] = [pair for record in records for pair in record.get('broken', ())]
        return batch


def _padded(texts: list[np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Text features (T, E) of different T as rows of one array, zeros behind each."""
    text_BTE = np.zeros((len(texts), length, texts[0].shape[1]), texts[0].dtype)
    for row_TE, text_TE in zip(text_BTE, texts, strict=True):
        row_TE[: len(text_TE)] = text_TE
    return {'text_BTE': text_BTE, 'lengths_B': np.array([len(t) for t in texts], np.int32)}


class CountBroken:
    """Takes the names of broken records out of batches, logs and counts them.

    Runs in the main process, whoever read the records.
    """

    def __init__(self, max_share: float, fate: str = 'replaced'):
        """max_share: of the records read; fate: what the log says became of a broken one."""
        self.max_share, self.fate = max_share, fate
        self.read = self.broken = 0
        self._named: set[str] = set()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without 'broken'; raises `UserError` when they have become too many."""
        found = batch.pop('broken')
        self.broken += len(found)
        self.read += len(batch['captions']) + len(found)
        for name, reason in found:
            if name not in self._named:
                self._named.add(name)
                logging.getLogger(__name__).warning(
                    'broken record %s: %s: %s (%d of %d read)',
                    self.fate, name, reason, self.broken, self.read,
                )  # fmt: skip
        if self.broken > self.max_share * max(self.read, JUDGED_FROM):
            raise UserError(
                f'{self.broken} of {self.read} records read were broken, more than '
                f'data.max_broken_share {self.max_share}, the last {name}: {reason}; mend them or '
                'raise it'
            )
        return batch


class Batches(Iterator[dict[str, Any]]):
    """An endless iterator over batches, which can be moved to any of them.

    Args:
      dataset: batch by number.
      num_workers: processes that read beside the main one; 0: two threads of it.
      check: called with every batch in the main process; what it returns is given out.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        num_workers: int,
        check: Callable[[dict[str, Any]], dict[str, Any]],
    ):
        self._dataset, self._num_workers, self._check = dataset, num_workers, check
        self._start = 0
        self._reading: grain.DatasetIterator | None = None

    def move_to(self, number: int) -> None:
        """Has batch `number`, from 0, come next."""
        self.close()
        self._start = number

    def __next__(self) -> dict[str, Any]:
        if self._reading is None:
            self._reading = self._read()
        return self._check(next(self._reading))

    def _read(self) -> grain.DatasetIterator:
        # A thread makes a whole batch, so a few batches ahead are enough.
        options = grain.ReadOptions(
            num_threads=1 if self._num_workers else 2, prefetch_buffer_size=4
        )
        iterable = self._dataset[self._start :].to_iter_dataset(options)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # workers are started with them
                flags.FLAGS.mark_as_parsed()
            workers = grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=2)
            iterable = iterable.mp_prefetch(workers, obey_parent_alone)
        return iter(iterable)

    def close(self) -> None:
        """Ends worker processes."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None


def endless(source: Sequence[Any], seed: int, *, shuffle: bool = True) -> grain.MapDataset:
    """The items of a random-access source, again and again.

    Every epoch has its own order, unless the source is drawn in its own (`shuffle` False).
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

    `batch_size` counts all hosts together; this host gets its slice: those of all hosts, one after
    the other, are what a single host would read. To resume, move to where the run stood, on any
    number of hosts and workers. Worker processes need a `__main__` guard.

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
    # Evaluation may see an image twice; in training a bucket below a batch is a mistake.
    smallest = batch_size if split == 'train' else 1
    buckets = make_buckets(data, split, smallest=smallest, seed=seed)
    batched = []
    for bucket in buckets:
        parts = [_records(part, bucket.size, data, seed) for part in bucket.parts]
        mixed = _mix(parts, [part.share for part in bucket.parts])
        stored_length = bucket.layout.text_length if bucket.layout else 0
        collate = Collate(text_tokenizer, stored_length or text_length)
        # Nothing is read before an item is asked for, so other hosts' slices cost nothing. Sliced
        # before buckets are mixed, or hosts would see different shapes at the same step.
        slices = mixed.batch(batch_size // process_count, drop_remainder=True, batch_fn=collate)
        batched.append(slices[process_index::process_count])
    dataset = _mix(batched, [bucket.share for bucket in buckets])
    return Batches(dataset, data.num_workers, CountBroken(data.max_broken_share))


def _records(part: Part, size: tuple[int, int], data: DataConfig, seed: int) -> grain.MapDataset:
    """A part's records, read and decoded when asked for."""
    if part.records is None:  # images drawn in an order of their own, anew every epoch
        return endless(part.source, seed, shuffle=False)
    words = np.random.SeedSequence((seed, part.number, *size)).generate_state(1)
    order = endless(range(len(part.records)), int(words[0]))
    read = ReadRecord(part.source, part.records, size, data.short_captions, data.smallest_crop)
    return order.random_map(read)


def _mix(datasets: list[grain.MapDataset], shares: list[float]) -> grain.MapDataset:
    """Items of all in fixed turns, by share."""
    return datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, shares)
