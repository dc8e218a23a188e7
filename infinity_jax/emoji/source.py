"""The embedded emoji as a source of records that are drawn when asked for."""

import dataclasses
import functools
from typing import Any

import numpy as np

from infinity_jax.emoji import captions
from infinity_jax.emoji.render import check_image_size, render
from infinity_jax.errors import UserError

ENDLESS = 2**40  # items of a source that draws its records: more than any run reads


@functools.lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


@dataclasses.dataclass(frozen=True)
class EmojiSource:
    """Images of the embedded set; item i depends on the fields and i alone.

    Every `len(pairs)` items are one epoch: each (emoji, background) pair once, in a new order, with
    a newly drawn size, place and wording.
    """

    subset: str = 'starter'
    split: str = 'train'
    image_size: int = 64
    seed: int = 0
    placed_rate: float = captions.PLACED_RATE  # of the images have a drawn size and place

    def __post_init__(self):
        check_image_size(self.image_size)
        if not 0 <= self.placed_rate <= 1:
            raise UserError(f'placed_rate of emoji is {self.placed_rate}; wanted 0 to 1')
        captions.pairs(self.subset, self.split)  # raises for an unknown subset or split

    def __len__(self) -> int:
        return ENDLESS

    def spec(self, index: int) -> captions.ImageSpec:
        """What image `index` shows."""
        pairs = captions.pairs(self.subset, self.split)
        epoch, position = divmod(int(index), len(pairs))
        pair = pairs[_epoch_order(self.seed, epoch, len(pairs))[position]]
        rng = np.random.default_rng((self.seed, epoch, 1 + position))
        return captions.sample_spec(rng, *pair, placed_rate=self.placed_rate)

    def __getitem__(self, index: int) -> dict[str, Any]:
        spec = self.spec(index)
        return {'pixels': render(spec, self.image_size), 'caption': captions.caption(spec)}
