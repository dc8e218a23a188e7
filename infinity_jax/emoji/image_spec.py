"""Specifications of emoji images: emoji, background, size and place, and the caption of each.

A caption is a pure function of an `ImageSpec`; captions are never parsed.
"""

import dataclasses
import functools
import zlib

import numpy as np

from infinity_jax.emoji import artwork
from infinity_jax.errors import UserError

# Any two are more than 105 apart in RGB, so that the nearest name of a slightly wrong colour is
# unambiguous.
BACKGROUNDS = {
    'white': (250, 250, 250),
    'black': (15, 15, 15),
    'grey': (128, 128, 128),
    'red': (225, 30, 45),
    'orange': (255, 130, 0),
    'yellow': (255, 230, 60),
    'green': (30, 150, 50),
    'light blue': (140, 205, 255),
    'blue': (30, 70, 200),
    'pink': (255, 150, 205),
    'purple': (125, 20, 165),
    'brown': (120, 65, 20),
}
# Edge of the emoji over edge of the image: 56, 44 and 32 pixels of 64.
SIZES = {'large': 7 / 8, 'medium': 11 / 16, 'small': 1 / 2}
SIZE_WORDS = {'large': 'large', 'medium': 'medium-sized', 'small': 'small'}
PLACE_WORDS = {
    'centre': 'in the middle',
    'top left': 'in the top left corner',
    'top right': 'in the top right corner',
    'bottom left': 'in the bottom left corner',
    'bottom right': 'in the bottom right corner',
}
PLACES = tuple(PLACE_WORDS)
TEMPLATES = ('scene', 'name')  # 'a red apple on a blue background' and 'red apple'
SPLITS = ('train', 'held_out')

HELD_OUT_PERCENT = 10
NAME_ONLY_RATE = 0.1  # share of the captions that are the bare name
MENTION_RATE = 0.85  # probability that the caption mentions a random size, and a random place


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """An image of one emoji on a background, and the facts that its caption mentions."""

    emoji: str
    background: str
    size: str = 'large'
    place: str = 'centre'
    mention_size: bool = False
    mention_place: bool = False
    mention_background: bool = True
    template: str = 'scene'

    def __post_init__(self):
        artwork.find(self.emoji)
        for field, wanted in (
            ('background', tuple(BACKGROUNDS)),
            ('size', tuple(SIZES)),
            ('place', PLACES),
            ('template', TEMPLATES),
        ):
            if getattr(self, field) not in wanted:
                raise UserError(
                    f'{field} {getattr(self, field)!r} is unknown; choose one of '
                    f'{", ".join(wanted)}'
                )
        if self.size == 'large' and self.place != 'centre':
            raise UserError(
                f'a large emoji fills the image; its place is centre, not {self.place!r}'
            )
        if self.template == 'name' and (
            self.mention_size or self.mention_place or self.mention_background
        ):
            raise UserError(
                "template 'name' mentions nothing else; set the mention_ fields to False"
            )


def with_article(noun_phrase: str) -> str:
    """Adds the indefinite article that the first sound asks for: 'a red apple', 'an onion'."""
    vowel = noun_phrase[0] in 'aeiou' or noun_phrase.startswith(('hourglass', 'x-ray'))
    if noun_phrase.startswith(('uni', 'ewe', 'euro', 'one ')):
        vowel = False
    return f'{"an" if vowel else "a"} {noun_phrase}'


def caption(spec: ImageSpec) -> str:
    """The caption of an image."""
    if spec.template == 'name':
        return spec.emoji
    subject = f'{SIZE_WORDS[spec.size]} {spec.emoji}' if spec.mention_size else spec.emoji
    words = [with_article(subject) if artwork.find(spec.emoji).article else subject]
    if spec.mention_place:
        words.append(PLACE_WORDS[spec.place])
    if spec.mention_background:
        words.append(f'on {with_article(spec.background)} background')
    return ' '.join(words)


def is_held_out(emoji: str, background: str) -> bool:
    """Whether the pair is left out of training, as 10 % of all pairs are.

    A checksum of the names decides, so that the answer is the same in every process and subset.
    """
    return zlib.crc32(f'{emoji} on {background}'.encode()) % 100 < HELD_OUT_PERCENT


@functools.cache
def pairs(subset: str, split: str) -> tuple[tuple[str, str], ...]:
    """All (emoji, background) pairs of a subset that belong to a split."""
    if split not in SPLITS:
        raise UserError(f'split {split!r} is unknown; choose one of {", ".join(SPLITS)}')
    return tuple(
        (each.name, background)
        for each in artwork.subset(subset)
        for background in BACKGROUNDS
        if is_held_out(each.name, background) == (split == 'held_out')
    )


def sample_spec(
    rng: np.random.Generator,
    emoji: str,
    background: str,
    *,
    placed_rate: float,
    name_only_rate: float = NAME_ONLY_RATE,
) -> ImageSpec:
    """Samples size, place and wording for an (emoji, background) pair.

    Args:
      placed_rate: probability of a random size and place; other images are large and centred.
      name_only_rate: probability of a caption that is the bare name. Its image is large and
        centred, since the caption could not mention another size or place.
    """
    name_only, placed, say_size, say_place = rng.random(4)
    if name_only < name_only_rate:
        return ImageSpec(emoji, background, mention_background=False, template='name')
    if placed >= placed_rate:
        return ImageSpec(emoji, background)
    return ImageSpec(
        emoji,
        background,
        size=('medium', 'small')[rng.integers(2)],
        place=PLACES[rng.integers(len(PLACES))],
        mention_size=bool(say_size < MENTION_RATE),
        mention_place=bool(say_place < MENTION_RATE),
    )
