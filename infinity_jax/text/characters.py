"""Checks and cuts texts by their characters, before they are tokenized."""

import unicodedata

# A text is read up to 64 characters per token, for the 512 tokens of the released models or for
# more. Only longer runs of spaces or of characters that the vocabulary lacks take more per token.
MAX_CHARACTERS = 1 << 15
CHARACTERS_PER_TOKEN = 64
# General categories of control, format and separator characters.
_UNSEEN = ('Cc', 'Cf', 'Zs', 'Zl', 'Zp')


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: only spaces, control characters and zero-width ones."""
    return all(unicodedata.category(character) in _UNSEEN for character in text)


def readable(text: str, tokens: int) -> str:
    """The part of a text that can matter to its first `tokens` tokens."""
    return shortened(text, max(MAX_CHARACTERS, CHARACTERS_PER_TOKEN * tokens))


def shortened(text: str, characters: int) -> str:
    """The text's beginning of at most so many characters, up to a whole word if it has spaces."""
    if len(text) <= characters:
        return text
    beginning = text[:characters]
    if text[characters].isspace():
        return beginning
    words = beginning.rsplit(maxsplit=1)
    return words[0] if len(words) > 1 else beginning
