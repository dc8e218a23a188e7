"""The one error for bad input."""


class UserError(ValueError):
    """Bad input. Its one-line message says what was seen, what was wanted and what to do."""
