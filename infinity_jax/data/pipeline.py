"""Random-access sources of records, and the grain pipeline that turns one into batches.

A record is `{'pixels': uint8 (Y, X, 3), 'caption': str}`. Pixels stay uint8 until the jitted step
(`pixels / 127.5 - 1`): a quarter of the bytes to copy. A batch is

    {'pixels_BYX3': uint8 (B, Y, X, 3), 'captions': list of B str,
     'ids_BT': int32 (B, T), 'lengths_B': int32 (B,)}   # the last two with a text tokenizer
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from infinity_jax.config import UserError
from infinity_jax.data import captions
from infinity_jax.data.render import check_picture_size, render

SOURCES = ('emoji',)
ENDLESS = 2**40  # items of a source that draws its records: more than any run reads

# (captions, max_length, pad_to) -> ids_BT, lengths_B, as `text.TextTokenizer`
TextTokenizer = Callable[[list[str], int, int], tuple[np.ndarray, np.ndarray]]


@functools.lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


@dataclasses.dataclass(frozen=True)
class EmojiSource:
    """Pictures of the embedded set; item i depends on the fields and i alone.

    Every `len(pairs)` items are one epoch: each (emoji, background) pair once, in a new order, with
    a newly drawn size, place and wording.
    """

    subset: str = 'starter'
    split: str = 'train'
    picture_size: int = 64
    seed: int = 0
    placed_rate: float = captions.PLACED_RATE  # of the pictures have a drawn size and place

    def __post_init__(self):
        check_picture_size(self.picture_size)
        if not 0 <= self.placed_rate <= 1:
            raise UserError(f'config field data.placed_rate is {self.placed_rate}; wanted 0 to 1')
        captions.pairs(self.subset, self.split)  # raises for an unknown subset or split

    def __len__(self) -> int:
        return ENDLESS

    def spec(self, index: int) -> captions.PictureSpec:
        """What picture `index` shows."""
        pairs = captions.pairs(self.subset, self.split)
        epoch, position = divmod(int(index), len(pairs))
        pair = pairs[_epoch_order(self.seed, epoch, len(pairs))[position]]
        rng = np.random.default_rng((self.seed, epoch, 1 + position))
        return captions.draw_spec(rng, *pair, placed_rate=self.placed_rate)

    def __getitem__(self, index: int) -> dict[str, Any]:
        spec = self.spec(index)
        return {'pixels': render(spec, self.picture_size), 'caption': captions.caption(spec)}


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
        return batch


def batches(
    source: Sequence[dict[str, Any]],
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    text_tokenizer: TextTokenizer | None = None,
    text_length: int = 32,
    num_workers: int = 0,
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.DatasetIterator:
    """An endless, checkpointable iterator over batches of any random-access source.

    `batch_size` counts all hosts together; this host gets its share of it, from items that no other
    host reads. `get_state` and `set_state` are exact, and a state wants the `num_workers` that it
    was saved with. Worker processes need parsed absl flags and a `__main__` guard.
    """
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f'batch_size {batch_size} does not divide over {process_count} hosts; '
            f'use a multiple of {process_count}'
        )
    if len(source) < batch_size:
        raise UserError(
            f'the data source holds {len(source)} records, fewer than batch_size {batch_size}: '
            'lower batch_size or add data'
        )
    dataset = grain.MapDataset.source(source).seed(seed)
    # By host before anything else: later stages may group records, and hosts must not overlap.
    dataset = dataset[process_index::process_count]
    if shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.repeat(None).batch(
        batch_size // process_count,
        drop_remainder=True,
        batch_fn=Collate(text_tokenizer, text_length),
    )
    # A thread makes a whole batch, so a few batches ahead are enough.
    options = grain.ReadOptions(num_threads=1 if num_workers else 2, prefetch_buffer_size=4)
    iterable = dataset.to_iter_dataset(options)
    if num_workers:
        workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        iterable = iterable.mp_prefetch(workers)
    return iter(iterable)


def training_batches(
    *,
    source: str = 'emoji',
    subset: str = 'starter',
    split: str = 'train',
    picture_size: int = 64,
    placed_rate: float = captions.PLACED_RATE,
    batch_size: int,
    seed: int = 0,
    text_tokenizer: TextTokenizer | None = None,
    text_length: int = 32,
    num_workers: int = 0,
) -> grain.DatasetIterator:
    """Endless batches of a source that the config names."""
    if source not in SOURCES:
        raise UserError(f'data source {source!r} is unknown; choose one of {", ".join(SOURCES)}')
    records = EmojiSource(subset, split, picture_size, seed, placed_rate)
    return batches(
        records,
        batch_size,
        seed=seed,
        shuffle=False,  # the source shuffles its pairs itself, anew every epoch
        text_tokenizer=text_tokenizer,
        text_length=text_length,
        num_workers=num_workers,
    )
