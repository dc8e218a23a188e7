"""The error for invalid input, and the text of other errors in one line."""


class UserError(ValueError):
    """Invalid input. Its one-line message names the value seen, the value wanted and the remedy."""


def first_line(error: BaseException | str, limit: int | None = None) -> str:
    """The first line of an error's text, cut to `limit` characters; its type if it has no text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:limit]


def in_one_line(error: BaseException | str, limit: int | None = None) -> str:
    """The whole text of an error in one line, cut to `limit`; its type if it has no text."""
    return (' '.join(str(error).split()) or type(error).__name__)[:limit]
