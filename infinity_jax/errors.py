"""The error for invalid input, and the text of other errors in one line."""

_MAX_CHARACTERS = 3000  # of a message; a longer one loses its middle
_REMEDY = 400  # characters at the end that it keeps
# Characters that end a line or move a terminal's cursor, as Python writes them in a literal.
_ESCAPED = {n: repr(chr(n))[1:-1] for n in (*range(32), 127, 0x85, 0x2028, 0x2029)}


class UserError(ValueError):
    """Invalid input. Its one-line message names the value seen, the value wanted and the remedy.

    Line ends and control characters in the message, which a file's name or content may bring in,
    are written as escapes.
    """

    def __init__(self, message: object):
        text = str(message).strip().translate(_ESCAPED)
        if len(text) > _MAX_CHARACTERS:
            text = f'{text[: _MAX_CHARACTERS - _REMEDY]} … {text[-_REMEDY:]}'
        super().__init__(text)


def first_line(error: BaseException | str, limit: int | None = None) -> str:
    """The first line of an error's text, cut to `limit` characters; its type if it has no text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:limit]


def in_one_line(error: BaseException | str, limit: int | None = None) -> str:
    """The whole text of an error in one line, cut to `limit`; its type if it has no text."""
    return (' '.join(str(error).split()) or type(error).__name__)[:limit]
