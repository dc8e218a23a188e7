"""Trials of editing on emoji: sources, edits, and the image that each edit should lead to."""

import dataclasses
from typing import NamedTuple

import numpy as np

from infinity_jax.emoji.artwork import subset as emoji_subset
from infinity_jax.emoji.image_spec import (
    BACKGROUNDS,
    PLACES,
    ImageSpec,
    caption,
    pairs,
    sample_spec,
)
from infinity_jax.emoji.render import placement, render
from infinity_jax.inference.edit import Edit
from infinity_jax.inference.edit_masks import extend

PLACED_RATE = 0.5  # share of the sources of edits by words with a random size and place
CROP = 5 / 8  # edge of the crop that outpainting starts from; it holds a small emoji in a corner


class Trial(NamedTuple):
    """An edit, the image that it should lead to, and the part of the source that it keeps.

    Attributes:
      edit: of a render.
      source, wanted: specs of the source and of the result; size and place are judged.
      kept_YX: bool, pixels that stay; None: the matcher alone judges.
    """

    edit: Edit
    source: ImageSpec
    wanted: ImageSpec
    kept_YX: np.ndarray | None = None


def inpainting(subset: str, count: int, seed: int, size: int) -> list[Trial]:
    """An emoji is replaced by another: the mask is its square."""
    trials = []
    for rng, source, emoji, _ in _samples(subset, count, seed):
        source = dataclasses.replace(
            source, size=('medium', 'small')[rng.integers(2)], place=PLACES[rng.integers(5)]
        )
        wanted = dataclasses.replace(source, emoji=emoji)
        top, left, edge = placement(source.size, source.place, size)
        mask = np.zeros((size, size), bool)
        mask[top : top + edge, left : left + edge] = True
        edit = Edit(render(source, size), caption(_said(wanted)), mask)
        trials.append(Trial(edit, source, wanted, ~mask))
    return trials


def outpainting(subset: str, count: int, seed: int, size: int) -> list[Trial]:
    """A crop with a small emoji is put back into a corner of an empty canvas."""
    trials, edge = [], round(CROP * size)
    for rng, source, _, _ in _samples(subset, count, seed):
        row, column = rng.integers(2, size=2)
        place = f'{("top", "bottom")[row]} {("left", "right")[column]}'
        source = dataclasses.replace(source, size='small', place=place)
        at = int(row) * (size - edge), int(column) * (size - edge)
        crop = render(source, size)[at[0] : at[0] + edge, at[1] : at[1] + edge]
        canvas, mask = extend(crop, (size, size), at)
        edit = Edit(canvas, caption(_said(source)), mask)
        trials.append(Trial(edit, source, source, mask == 0))
    return trials


def background_by_words(subset: str, count: int, seed: int, size: int) -> list[Trial]:
    """The caption names another background; the emoji stays."""
    return [
        _by_words(source, dataclasses.replace(source, background=background), size)
        for _, source, _, background in _samples(subset, count, seed)
    ]


def emoji_by_words(subset: str, count: int, seed: int, size: int) -> list[Trial]:
    """The caption names another emoji; the background stays."""
    return [
        _by_words(source, dataclasses.replace(source, emoji=emoji), size)
        for _, source, emoji, _ in _samples(subset, count, seed)
    ]


def variations(subset: str, count: int, seed: int, size: int) -> list[Trial]:
    """The caption names another emoji on another background; a strength is set later."""
    return [
        Trial(
            Edit(render(source, size), caption(ImageSpec(emoji, background))),
            source,
            ImageSpec(emoji, background),
        )
        for _, source, emoji, background in _samples(subset, count, seed)
    ]


def _by_words(source: ImageSpec, wanted: ImageSpec, size: int) -> Trial:
    edit = Edit(render(source, size), caption(wanted), source_prompt=caption(source))
    return Trial(edit, source, wanted)


def _samples(subset: str, count: int, seed: int):
    """Yields a generator, a source of a trained pair, and another emoji and background."""
    rng = np.random.default_rng(seed)
    choices = pairs(subset, 'train')
    names = [each.name for each in emoji_subset(subset)]
    for _ in range(count):
        pair = choices[rng.integers(len(choices))]
        source = sample_spec(rng, *pair, placed_rate=PLACED_RATE, name_only_rate=0)
        emoji = _other(rng, names, source.emoji)
        yield rng, source, emoji, _other(rng, list(BACKGROUNDS), source.background)


def _other(rng: np.random.Generator, names: list[str], name: str) -> str:
    return names[(names.index(name) + rng.integers(1, len(names))) % len(names)]


def _said(spec: ImageSpec) -> ImageSpec:
    return dataclasses.replace(spec, mention_size=True, mention_place=True)
