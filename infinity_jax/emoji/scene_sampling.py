"""Samples scenes of the six tasks; some combinations are held out of training.

Held out are pairs of emoji, counts of an emoji, colours of an object, and emoji on backgrounds.

What a caption leaves open is laid out in reading order: the first of two objects on the left, and
counted ones from the top left. The bits of a token are predicted independently, so a model that
learned several layouts for one caption would draw a blend of them.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable

import numpy as np

from infinity_jax.emoji import artwork
from infinity_jax.emoji.image_spec import BACKGROUNDS, HELD_OUT_PERCENT, SPLITS, is_held_out
from infinity_jax.emoji.scene import (
    COLOURED,
    MIN_CONTRAST,
    NUMBERS,
    PAIR_LAYOUTS,
    TASKS,
    Scene,
)
from infinity_jax.errors import UserError

# Of those that come in colours; training never shows them.
HELD_OUT_COLOURED = ('purple heart', 'green circle', 'orange square')
SIDE_BY_SIDE = PAIR_LAYOUTS[0]  # left, right
CORNERS = ('top left', 'top right', 'bottom left', 'bottom right')
MENTION_RATE = 0.5  # probability that a training caption also mentions the background
MAX_TRIES = 10_000


@functools.lru_cache(maxsize=2**15)
def is_visible(emoji: str, background: str) -> bool:
    """Whether an emoji differs enough from a background to be found on it."""
    rgba = artwork.sprite(emoji, 28).astype(np.float32) / 255
    colour = np.array(BACKGROUNDS[background], np.float32) / 255
    squared = np.square(rgba[..., :3] - colour * rgba[..., 3:]).sum(-1)
    return float(squared.mean()) ** 0.5 >= MIN_CONTRAST


def held_out_parts(scene: Scene) -> set[str]:
    """Which of a scene's combinations are never trained: pair, count, colour, background.

    A checksum of the names decides on all but the colours, in every process and subset alike.
    """
    parts = set()
    names = sorted(set(scene.emoji))
    if len(names) == 2 and _chosen(' and '.join(names)):
        parts.add('pair')
    if scene.task == 'counting' and _chosen(f'{len(scene.emoji)} {names[0]}'):
        parts.add('count')
    if any(name in HELD_OUT_COLOURED for name in names):
        parts.add('colour')
    if any(is_held_out(name, scene.background) for name in names):
        parts.add('background')
    return parts


def _chosen(combination: str) -> bool:
    return zlib.crc32(combination.encode()) % 100 < HELD_OUT_PERCENT


def tested_part(scene: Scene) -> str:
    """The combination that a task is about, which its held-out scenes have and no other."""
    if scene.task == 'counting':
        return 'count'
    if len(scene.emoji) == 2:
        return 'pair'
    coloured = scene.task == 'colors' and scene.emoji[0] in COLOURED
    return 'colour' if coloured else 'background'


@functools.cache
def scene_emoji(subset: str) -> tuple[str, ...]:
    """Names of a subset's emoji that scenes show outside of the tasks on colours of objects."""
    return tuple(each.name for each in artwork.subset(subset) if each.name not in COLOURED)


@functools.cache
def candidates(subset: str) -> tuple[str, ...]:
    """Names of all emoji that scenes of a subset show."""
    return (*scene_emoji(subset), *COLOURED)


def sample_scene(
    rng: np.random.Generator,
    task: str,
    subset: str,
    split: str,
    *,
    mention_rate: float = MENTION_RATE,
) -> Scene:
    """Samples a scene of a task.

    Args:
      rng: decides; the same state gives the same scene.
      task: one of `TASKS`.
      subset: of the emoji.
      split: 'train': no combination is held out; 'held_out': the one that the task tests is, and
        no other.
      mention_rate: probability that a caption mentions the background where it need not.

    Raises:
      UserError: task, subset or split is unknown.
    """
    if split not in SPLITS:
        raise UserError(f'split {split!r} is unknown; choose one of {", ".join(SPLITS)}')
    if task not in TASKS:
        raise UserError(f'task {task!r} is unknown; choose one of {", ".join(TASKS)}')
    coloured, mention = rng.random(2)
    make = _MAKERS[task]
    if task == 'colors' and coloured < 0.5:
        make = _coloured_object
    for _ in range(MAX_TRIES):
        scene = make(rng, subset)
        wanted = {tested_part(scene)} if split == 'held_out' else set()
        if held_out_parts(scene) == wanted and all(
            is_visible(name, scene.background) for name in scene.emoji
        ):
            said = scene.mention_background or bool(mention < mention_rate)
            return dataclasses.replace(scene, mention_background=said)
    raise AssertionError(f'no {split} scene of {task} in {MAX_TRIES} tries')


def _background(rng: np.random.Generator) -> str:
    return tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]


def _single(rng: np.random.Generator, subset: str) -> Scene:
    names = scene_emoji(subset)
    return Scene('single_object', (names[rng.integers(len(names))],), _background(rng))


def _on_background(rng: np.random.Generator, subset: str) -> Scene:
    return dataclasses.replace(_single(rng, subset), task='colors', mention_background=True)


def _coloured_object(rng: np.random.Generator, subset: str) -> Scene:
    del subset  # all have the same emoji in colours
    return Scene('colors', (COLOURED[rng.integers(len(COLOURED))],), _background(rng))


def _two(rng: np.random.Generator, subset: str) -> Scene:
    names = scene_emoji(subset)
    first, second = rng.choice(len(names), 2, replace=False)
    return Scene('two_object', (names[first], names[second]), _background(rng), SIDE_BY_SIDE)


def _position(rng: np.random.Generator, subset: str) -> Scene:
    places = PAIR_LAYOUTS[rng.integers(len(PAIR_LAYOUTS))]
    return dataclasses.replace(_two(rng, subset), task='position', places=places)


def _counting(rng: np.random.Generator, subset: str) -> Scene:
    names = [name for name in scene_emoji(subset) if artwork.find(name).article]
    name, count = names[rng.integers(len(names))], 1 + int(rng.integers(len(NUMBERS)))
    if count == 1:
        places: tuple[str, ...] = ('centre',)
    elif count == 2:
        places = SIDE_BY_SIDE
    else:
        places = CORNERS[:count]
    return Scene('counting', (name,) * count, _background(rng), places)


def _two_coloured(rng: np.random.Generator, subset: str) -> Scene:
    """Two coloured objects that differ in kind and colour."""
    del subset
    while True:
        names = [COLOURED[i] for i in rng.choice(len(COLOURED), 2, replace=False)]
        (colour, kind), (other_colour, other_kind) = (name.split() for name in names)
        if colour != other_colour and kind != other_kind:
            return Scene('color_attr', (names[0], names[1]), _background(rng), SIDE_BY_SIDE)


_MAKERS: dict[str, Callable[[np.random.Generator, str], Scene]] = {
    'single_object': _single,
    'two_object': _two,
    'counting': _counting,
    'colors': _on_background,
    'position': _position,
    'color_attr': _two_coloured,
}
