"""The captions of a stored record, and how training samples one of them."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from infinity_jax.text.characters import MAX_CHARACTERS, is_blank, shortened

LONG_SENTENCE = 15  # words; a first sentence of so many is a caption by itself
_SENTENCE_END = re.compile(r'(?<=[.!?])\s+')


def cut(text: str) -> str:
    """The text before `--`, which starts the settings in prompts of some services.

    A text that begins with `--` is kept whole, as the released loader keeps it. Of a text of more
    than `MAX_CHARACTERS`, only the beginning is used. A text without a visible character is ''.
    """
    text = shortened(text, MAX_CHARACTERS)
    before = text.partition('--')[0]
    text = text if is_blank(before) else before
    return '' if is_blank(text) else text.strip()


@dataclasses.dataclass(frozen=True)
class RecordCaptions:
    """The captions of one image.

    Attributes:
      short: short captions, any of which may be used.
      long: a long caption, or '' for none.
      machine_written: whether the long caption may be shortened.
    """

    short: tuple[str, ...]
    long: str = ''
    machine_written: bool = False

    @property
    def usable(self) -> bool:
        """Whether any caption has a visible character."""
        return bool(cut(self.long)) or any(map(cut, self.short))

    def sample(self, rng: np.random.Generator, short_probability: float) -> str:
        """Samples the caption for one use of the image; '' if there is none.

        A short caption is used with the given probability, else the long one; where one kind is
        missing, the other is used. A machine-written long caption is cut after n sentences, where n
        is uniform from one more than the lead to all of them. The lead is the first sentence, or
        the first two if the first is short; it replaces a missing short caption.
        """
        shorts, sentences, counts = self._choices()
        long = ' '.join(sentences[: counts[int(rng.integers(len(counts)))]]) if counts else ''
        if shorts and (not long or rng.random() < short_probability):
            return shorts[rng.integers(len(shorts))]
        return long

    def every(self) -> tuple[str, ...]:
        """All captions that `sample` can return, each once, in a fixed order."""
        shorts, sentences, counts = self._choices()
        longs = [' '.join(sentences[:count]) for count in counts]
        return tuple(dict.fromkeys((*shorts, *longs)))

    def uncut(self) -> 'RecordCaptions':
        """The same captions, but the long one is never cut; few are left for `sample`."""
        shorts, sentences, _ = self._choices()
        return RecordCaptions(tuple(shorts), ' '.join(sentences))

    def _choices(self) -> tuple[list[str], list[str], Sequence[int]]:
        """Short captions; sentences of the long one, and after how many of them it may be cut.

        A long caption that is never cut counts as one sentence.
        """
        shorts, long = [text for text in map(cut, self.short) if text], cut(self.long)
        if self.machine_written and long:
            sentences = _SENTENCE_END.split(long)
            lead = 1 if len(sentences[0].split()) >= LONG_SENTENCE else 2
            shorts = shorts or [' '.join(sentences[:lead])]
            if len(sentences) > lead:
                return shorts, sentences, range(lead + 1, len(sentences) + 1)
        return (shorts, [long], (1,)) if long else (shorts, [], ())
