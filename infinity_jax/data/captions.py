"""Which of a stored record's captions is used, and how much of it."""

import dataclasses
import re

import numpy as np

LONG_SENTENCE = 15  # words; a first sentence of so many can stand alone
_SENTENCE_END = re.compile(r'(?<=[.!?])\s+')


def cut(text: str) -> str:
    """The text before `--`, where prompts of some services carry settings."""
    return text.split('--')[0].strip()


@dataclasses.dataclass(frozen=True)
class RecordCaptions:
    """What a record says about its image.

    Attributes:
      short: short captions, any of which may be used.
      long: a long caption, or ''.
      machine_written: whether the long caption may be shortened.
    """

    short: tuple[str, ...]
    long: str = ''
    machine_written: bool = False

    @property
    def usable(self) -> bool:
        """Whether anything is left of any caption."""
        return bool(cut(self.long)) or any(map(cut, self.short))

    def choose(self, rng: np.random.Generator, short_probability: float) -> str:
        """Draws the caption of one showing: a short one with the given probability, or the long.

        A machine-written long caption is cut after n sentences, n drawn evenly from more than its
        lead to all. The lead, one sentence if that is long and else two, stands in for a missing
        short caption. Where one kind is empty the other is used.
        """
        shorts, longs = self._choices()
        long = longs[rng.integers(len(longs))] if longs else ''
        if shorts and (not long or rng.random() < short_probability):
            return shorts[rng.integers(len(shorts))]
        return long

    def every(self) -> tuple[str, ...]:
        """Each caption that `choose` may give, once, in a fixed order."""
        shorts, longs = self._choices()
        return tuple(dict.fromkeys((*shorts, *longs)))

    def uncut(self) -> 'RecordCaptions':
        """The same with its long caption always whole; `choose` gives few different ones then."""
        shorts, longs = self._choices()
        return RecordCaptions(tuple(shorts), longs[-1] if longs else '')

    def _choices(self) -> tuple[list[str], list[str]]:
        """Short captions, and long ones from the shortest cut to the whole."""
        shorts, long = [text for text in map(cut, self.short) if text], cut(self.long)
        longs = [long] if long else []
        if self.machine_written and long:
            sentences = _SENTENCE_END.split(long)
            lead = 1 if len(sentences[0].split()) >= LONG_SENTENCE else 2
            shorts = shorts or [' '.join(sentences[:lead])]
            if len(sentences) > lead:
                counts = range(lead + 1, len(sentences) + 1)
                longs = [' '.join(sentences[:count]) for count in counts]
        return shorts, longs
