"""The embedded emoji as an endless source of rendered images."""

import dataclasses
import functools

import numpy as np

from infinity_jax.data.batch import Example
from infinity_jax.data.config import PLACED_RATE
from infinity_jax.emoji.image_spec import ImageSpec, caption, pairs, sample_spec
from infinity_jax.emoji.render import check_image_size, render, render_scene
from infinity_jax.emoji.scene import TASKS, Scene, scene_caption
from infinity_jax.emoji.scene_sampling import HELD_OUT_COLOURED, sample_scene
from infinity_jax.errors import UserError

# Of training scenes; which object is where takes longest to learn.
SCENE_TASKS = (*TASKS, 'two_object', 'position', 'color_attr')
ENDLESS = 2**40  # length of a source that renders its images: more than any run reads


@functools.lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


@dataclasses.dataclass(frozen=True)
class EmojiSource:
    """Images of the embedded set; example i depends on the fields and i alone.

    Every `len(pairs)` examples are one epoch: each (emoji, background) pair once, in a new order,
    with newly sampled size, place and wording. Of these a share is replaced by scenes of several
    emoji.
    """

    subset: str = 'starter'
    split: str = 'train'
    image_size: int = 64
    seed: int = 0
    placed_rate: float = PLACED_RATE  # share of the images with a random size and place
    scenes: float = 0.0  # share of the images that are scenes, see `SCENE_TASKS`
    scene_subset: str = ''  # emoji of the scenes; '': `subset`

    def __post_init__(self):
        check_image_size(self.image_size)
        if not 0 <= self.placed_rate <= 1:
            raise UserError(f'placed_rate of emoji is {self.placed_rate}; wanted 0 to 1')
        if not 0 <= self.scenes <= 1:
            raise UserError(f'scenes of emoji is {self.scenes}; wanted 0 to 1')
        for subset in (self.subset, self.scene_subset or self.subset):
            pairs(subset, self.split)  # raises for an unknown subset or split

    def __len__(self) -> int:
        return ENDLESS

    def spec(self, index: int) -> ImageSpec | Scene:
        """The specification of image `index`."""
        of_split = pairs(self.subset, self.split)
        epoch, position = divmod(int(index), len(of_split))
        pair = of_split[_epoch_order(self.seed, epoch, len(of_split))[position]]
        if self.scenes:
            rng = np.random.default_rng((self.seed, epoch, 1 + position, 1))
            # An object of a colour that is held out is never trained, not even by itself.
            if rng.random() < self.scenes or pair[0] in HELD_OUT_COLOURED:
                task = SCENE_TASKS[rng.integers(len(SCENE_TASKS))]
                return sample_scene(rng, task, self.scene_subset or self.subset, self.split)
        rng = np.random.default_rng((self.seed, epoch, 1 + position))
        return sample_spec(rng, *pair, placed_rate=self.placed_rate)

    def caption(self, index: int) -> str:
        """The caption of image `index`."""
        spec = self.spec(index)
        return scene_caption(spec) if isinstance(spec, Scene) else caption(spec)

    def __getitem__(self, index: int) -> Example:
        spec = self.spec(index)
        if isinstance(spec, Scene):
            return Example(scene_caption(spec), pixels_YX3=render_scene(spec, self.image_size))
        return Example(caption(spec), pixels_YX3=render(spec, self.image_size))
