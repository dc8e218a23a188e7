"""Scenes of one to four emoji, a grammar in the manner of GenEval: six tasks with exact truth.

A caption is a pure function of a `Scene`.
"""

import dataclasses
import re

from infinity_jax.emoji import artwork
from infinity_jax.emoji.image_spec import BACKGROUNDS, with_article
from infinity_jax.errors import UserError

# The names of GenEval's tasks, in its order.
TASKS = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')
COLOURS = (
    'red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white',
)  # fmt: skip
KINDS = ('heart', 'circle', 'square', 'book')
# The emoji that come in colours, as the artwork has them.
COLOURED = tuple(
    f'{colour} {kind}'
    for kind in KINDS
    for colour in COLOURS
    if (colour != 'pink' or kind == 'heart')
    and (kind != 'book' or colour in ('orange', 'green', 'blue'))
)

ROWS, COLUMNS = ('top', '', 'bottom'), ('left', '', 'right')
# Places of a small object; two next to each other overlap, those of a layout do not.
SCENE_PLACES = tuple(f'{row} {column}'.strip() or 'centre' for row in ROWS for column in COLUMNS)
PAIR_LAYOUTS = (('left', 'right'), ('right', 'left'), ('top', 'bottom'), ('bottom', 'top'))
RELATIONS = dict(zip(PAIR_LAYOUTS, ('left of', 'right of', 'above', 'below'), strict=True))
NUMBERS = ('one', 'two', 'three', 'four')

MIN_CONTRAST = 0.2  # RMS difference from the background that an object needs, of the range 0 to 1
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
    after = re.search(r' (?:of|with|showing|in|on) ', name)
    head, rest = (name[: after.start()], name[after.start() :]) if after else (name, '')
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
    return f'{before}{space}{noun}{rest}'
