"""The one error for bad input."""


class UserError(ValueError):
    """Bad input. The one-line message has the value seen, the value wanted and what to do."""
