"""Scenes of one to four emoji, a grammar in the manner of GenEval: six tasks with exact truth.

A caption is a pure function of a `Scene`. Some combinations are held out of training: pairs of
emoji, counts of an emoji, colours of an object, and emoji on backgrounds.
"""

import dataclasses
import functools
import re
import zlib
from collections.abc import Callable

import numpy as np

from infinity_jax.emoji import artwork
from infinity_jax.emoji.image_spec import (
    BACKGROUNDS,
    HELD_OUT_PERCENT,
    SPLITS,
    is_held_out,
    with_article,
)
from infinity_jax.errors import UserError

# The names of GenEval's tasks, in its order.
TASKS = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')
COLOURS = (
    'red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white',
)  # fmt: skip
KINDS = ('heart', 'circle', 'square', 'book')
# The emoji that come in colours, as the artwork has them, and those that training never shows.
COLOURED = tuple(
    f'{colour} {kind}'
    for kind in KINDS
    for colour in COLOURS
    if (colour != 'pink' or kind == 'heart')
    and (kind != 'book' or colour in ('orange', 'green', 'blue'))
)
HELD_OUT_COLOURED = ('purple heart', 'green circle', 'orange square')

ROWS, COLUMNS = ('top', '', 'bottom'), ('left', '', 'right')
# Places of a small object; two next to each other overlap, those of a layout do not.
SCENE_PLACES = tuple(f'{row} {column}'.strip() or 'centre' for row in ROWS for column in COLUMNS)
CORNERS = ('top left', 'top right', 'bottom left', 'bottom right')
PAIR_LAYOUTS = (('left', 'right'), ('right', 'left'), ('top', 'bottom'), ('bottom', 'top'))
RELATIONS = dict(zip(PAIR_LAYOUTS, ('left of', 'right of', 'above', 'below'), strict=True))
NUMBERS = ('one', 'two', 'three', 'four')

MIN_CONTRAST = 0.2  # RMS difference from the background that an object needs, of the range 0 to 1
MENTION_RATE = 0.5  # probability that a training caption also mentions the background
MAX_TRIES = 10_000
_IRREGULAR = {
    'leaf': 'leaves',
    'knife': 'knives',
    'tooth': 'teeth',
    'foot': 'feet',
    'goose': 'geese',
    'mouse': 'mice',
}
_UNCHANGED = ('fish', 'sheep', 'series')


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image of one to four emoji on a background.

    Attributes:
      task: one of `TASKS`; it decides the wording and what is judged.
      emoji: names, in the order of the caption.
      places: of `SCENE_PLACES`, one for each; () for a single large one in the middle.
      background: one of `BACKGROUNDS`.
      mention_background: whether the caption mentions it.
    """

    task: str
    emoji: tuple[str, ...]
    background: str
    places: tuple[str, ...] = ()
    mention_background: bool = False

    def __post_init__(self):
        if self.task not in TASKS:
            raise UserError(f'task {self.task!r} is unknown; choose one of {", ".join(TASKS)}')
        if self.background not in BACKGROUNDS:
            raise UserError(
                f'background {self.background!r} is unknown; choose one of {", ".join(BACKGROUNDS)}'
            )
        if not self.emoji or len(self.places) != (len(self.emoji) if self.places else 0):
            raise UserError(
                f'a scene of {len(self.emoji)} emoji has {len(self.places)} places; wanted one for '
                'each'
            )
        if not self.places and len(self.emoji) > 1:
            raise UserError('a large emoji fills the image; wanted a place for each of several')
        for name in self.emoji:
            artwork.find(name)
        unknown = [place for place in self.places if place not in SCENE_PLACES]
        if unknown:
            raise UserError(
                f'place {unknown[0]!r} is unknown; choose one of {", ".join(SCENE_PLACES)}'
            )

    @property
    def relation(self) -> str:
        """How the first of two objects lies to the second: one of GenEval's four relations."""
        return RELATIONS[self.places[0], self.places[1]]


def scene_caption(scene: Scene) -> str:
    """The caption of a scene."""
    first = scene.emoji[0]
    if scene.task == 'counting':
        words = (
            f'{NUMBERS[len(scene.emoji) - 1]} {first if len(scene.emoji) == 1 else plural(first)}'
        )
    elif len(scene.emoji) == 1:
        words = _noun(first)
    else:
        between = scene.relation if scene.task == 'position' else 'and'
        words = f'{_noun(first)} {between} {_noun(scene.emoji[1])}'
    if scene.mention_background:
        words += f' on {with_article(scene.background)} background'
    return words


def _noun(name: str) -> str:
    return with_article(name) if artwork.find(name).article else name


def plural(name: str) -> str:
    """The plural of a countable name: 'slices of pizza', 'four leaf clovers', 'cherries'."""
    head, rest = re.fullmatch(r'(.*?)( (?:of|with|showing|in|on) .*)?', name).groups()
    before, space, noun = head.rpartition(' ')
    if noun in _IRREGULAR:
        noun = _IRREGULAR[noun]
    elif noun.endswith(('man', 'woman')):
        noun = f'{noun[:-2]}en'
    elif noun.endswith(_UNCHANGED):
        pass
    elif noun.endswith(('s', 'x', 'ch', 'sh')):
        noun += 'es'
    elif noun.endswith('y') and noun[-2] not in 'aeiou':
        noun = f'{noun[:-1]}ies'
    else:
        noun += 's'
    return f'{before}{space}{noun}{rest or ""}'


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


def _two(rng: np.random.Generator, subset: str, task: str = 'two_object') -> Scene:
    names = scene_emoji(subset)
    first, second = rng.choice(len(names), 2, replace=False)
    places = PAIR_LAYOUTS[rng.integers(len(PAIR_LAYOUTS))]
    return Scene(task, (names[first], names[second]), _background(rng), places)


def _position(rng: np.random.Generator, subset: str) -> Scene:
    return _two(rng, subset, 'position')


def _counting(rng: np.random.Generator, subset: str) -> Scene:
    names = [name for name in scene_emoji(subset) if artwork.find(name).article]
    name, count = names[rng.integers(len(names))], 1 + int(rng.integers(len(NUMBERS)))
    if count == 1:
        places: tuple[str, ...] = ('centre',)
    elif count == 2:
        places = PAIR_LAYOUTS[2 * rng.integers(2)]
    else:
        places = tuple(CORNERS[i] for i in sorted(rng.choice(4, count, replace=False)))
    return Scene('counting', (name,) * count, _background(rng), places)


def _two_coloured(rng: np.random.Generator, subset: str) -> Scene:
    """Two coloured objects that differ in kind and colour."""
    del subset
    while True:
        names = [COLOURED[i] for i in rng.choice(len(COLOURED), 2, replace=False)]
        (colour, kind), (other_colour, other_kind) = (name.split() for name in names)
        if colour != other_colour and kind != other_kind:
            places = PAIR_LAYOUTS[rng.integers(len(PAIR_LAYOUTS))]
            return Scene('color_attr', (names[0], names[1]), _background(rng), places)


_MAKERS: dict[str, Callable[[np.random.Generator, str], Scene]] = {
    'single_object': _single,
    'two_object': _two,
    'counting': _counting,
    'colors': _on_background,
    'position': _position,
    'color_attr': _two_coloured,
}
