"""Which text a prompt asks for, and how much of it was read in an image."""

import collections
import re
from collections.abc import Sequence
from typing import NamedTuple

# Text in quotes: straight, typographic, or single ones that are no apostrophes.
_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|‘([^’]+)’|(?<!\w)\'([^\']+)\'(?!\w)')


class TextScore(NamedTuple):
    """How much of the wanted text was read.

    Attributes:
      characters: share of its characters.
      words: share of its words that were read whole.
      exact: whether all of its words were.
    """

    characters: float
    words: float
    exact: bool


def wanted_text(prompt: str) -> tuple[str, ...]:
    """The texts in quotes in a prompt that have a letter or digit."""
    found = (next(filter(None, match.groups())) for match in _QUOTED.finditer(prompt))
    return tuple(text for text in found if plain(text))


def plain(text: str) -> str:
    """Letters and digits alone, without case, as is usual for scene text."""
    return ''.join(character for character in text.casefold() if character.isalnum())


def words(texts: Sequence[str]) -> collections.Counter[str]:
    """Words of texts, without case and marks, with their number."""
    return collections.Counter(filter(None, (plain(w) for text in texts for w in text.split())))


def score_text(wanted: Sequence[str], lines: Sequence[str]) -> TextScore:
    """Compares what was read with what was wanted. Other text in the image costs nothing.

    Args:
      wanted: texts, one or more.
      lines: as read, in any order for words, in reading order for characters.
    """
    read = plain(''.join(lines))
    targets = [plain(text) for text in wanted]
    total = sum(map(len, targets))
    right = sum(max(len(target) - errors(target, read), 0) for target in targets)
    asked, found = words(wanted), words(lines)
    whole = (asked & found).total()
    return TextScore(right / total, whole / asked.total(), whole == asked.total())


def errors(target: str, read: str) -> int:
    """Characters to change, add or remove so that `target` becomes some part of `read`."""
    row = [0] * (len(read) + 1)  # a part may start anywhere
    for i, wanted in enumerate(target, 1):
        before, row = row, [i]
        for j, character in enumerate(read, 1):
            row.append(min(before[j - 1] + (wanted != character), before[j] + 1, row[j - 1] + 1))
    return min(row)  # and end anywhere
