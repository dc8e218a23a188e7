"""The grain pipeline: from records, sorted into buckets, to batches.

A record is `{'pixels': uint8 (Y, X, 3), 'caption': str}`. Pixels stay uint8 until the jitted step
(`pixels / 127.5 - 1`): a quarter of the bytes to copy. A batch, all of one picture shape, is

    {'pixels_BYX3': uint8 (B, Y, X, 3), 'captions': list of B str,
     'ids_BT': int32 (B, T), 'lengths_B': int32 (B,)}   # the last two with a text tokenizer

Batch i follows from the configuration, the seed and i alone. Its bucket follows from i and the
buckets' shares, which are the same on all hosts; each host fills it from records of its own.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from infinity_jax.config import UserError
from infinity_jax.data.buckets import Part, StoredSource, make_buckets
from infinity_jax.data.config import DataConfig
from infinity_jax.data.decode import Crop, decode
from infinity_jax.data.records import BrokenRecord, RawRecord

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
      records: int64, this host's records of the bucket.
      size: (Y, X) of the pictures.
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
                raw = source.read(place)
                caption = self._caption(raw, rng)
                pixels = decode(raw.open_picture(), self.size, self._crop(rng))
                return {'pixels': pixels, 'caption': caption, 'broken': broken}
            except (BrokenRecord, OSError) as error:
                broken.append((f'{source.name}: {source.record_name(place)}', str(error)))
        raise UserError(
            f'{len(broken)} records in a row are broken, the last {broken[-1][0]}: '
            f'{broken[-1][1]}; see whether all of the data is still there'
        )

    def _caption(self, raw: RawRecord, rng: np.random.Generator) -> str:
        if raw.captions is None:
            return ''
        caption = raw.captions.choose(rng, self.short_captions)
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
        batch = {'pixels_BYX3': np.stack([record['pixels'] for record in records])}
        batch['captions'] = texts
        if self.text_tokenizer is not None:
            ids_BT, lengths_B = self.text_tokenizer(texts, self.text_length, self.text_length)
            batch['ids_BT'] = np.asarray(ids_BT, np.int32)
            batch['lengths_B'] = np.asarray(lengths_B, np.int32)
        batch['broken'] = [pair for record in records for pair in record.get('broken', ())]
        return batch


class CountBroken:
    """Takes the names of broken records out of batches, logs and counts them.

    Runs in the main process, whoever read the records.
    """

    def __init__(self, max_share: float):
        self.max_share = max_share
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
                    'broken record replaced: %s: %s (%d of %d read)',
                    name, reason, self.broken, self.read,
                )  # fmt: skip
        if self.broken > self.max_share * max(self.read, JUDGED_FROM):
            raise UserError(
                f'{self.broken} of {self.read} records read were broken, more than '
                f'data.max_broken_share {self.max_share}, the last {name}: {reason}; mend them or '
                'raise it'
            )
        return batch


def endless(
    source: Sequence[Any],
    seed: int,
    *,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """The items of a random-access source that no other host reads, again and again.

    Every epoch has its own order, unless the source is drawn in its own (`shuffle` False).
    """
    # By host before anything else: later stages may group records, and hosts must not overlap.
    dataset = grain.MapDataset.source(source).seed(seed)[process_index::process_count]
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
) -> grain.DatasetIterator:
    """An endless, checkpointable iterator over the batches of a split.

    `batch_size` counts all hosts together; this host gets its share of it. `get_state` and
    `set_state` are exact, and a state wants the `num_workers` that it was saved with. Worker
    processes need a `__main__` guard.

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
    # Evaluation may see a picture twice; in training a bucket below a batch is a mistake.
    smallest = batch_size if split == 'train' else process_count
    buckets = make_buckets(data, split, smallest=smallest, num_hosts=process_count, seed=seed)
    collate = Collate(text_tokenizer, text_length)
    batched = []
    for bucket in buckets:
        hosts = {'process_index': process_index, 'process_count': process_count}
        parts = [_records(part, bucket.size, data, seed, **hosts) for part in bucket.parts]
        mixed = _mix(parts, [part.share for part in bucket.parts])
        share_of_host = batch_size // process_count
        batched.append(mixed.batch(share_of_host, drop_remainder=True, batch_fn=collate))
    dataset = _mix(batched, [bucket.share for bucket in buckets])
    # A thread makes a whole batch, so a few batches ahead are enough.
    options = grain.ReadOptions(num_threads=1 if data.num_workers else 2, prefetch_buffer_size=4)
    iterable = dataset.to_iter_dataset(options)
    if data.num_workers:
        if not flags.FLAGS.is_parsed():  # workers are started with them
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(data.num_workers, per_worker_buffer_size=2)
        iterable = iterable.mp_prefetch(workers)
    return iter(iterable.map(CountBroken(data.max_broken_share)))


def _records(
    part: Part,
    size: tuple[int, int],
    data: DataConfig,
    seed: int,
    *,
    process_index: int,
    process_count: int,
) -> grain.MapDataset:
    """A part's records on one host, read and decoded."""
    hosts = {'process_index': process_index, 'process_count': process_count}
    if part.records is None:  # pictures drawn in an order of their own, anew every epoch
        return endless(part.source, seed, shuffle=False, **hosts)
    own = part.records[process_index::process_count]
    words = np.random.SeedSequence((seed, part.number, process_index, *size)).generate_state(1)
    order = endless(range(len(own)), int(words[0]))
    read = ReadRecord(part.source, own, size, data.short_captions, data.smallest_crop)
    return order.random_map(read)


def _mix(datasets: list[grain.MapDataset], shares: list[float]) -> grain.MapDataset:
    """Items of all in fixed turns, by share."""
    return datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, shares)
