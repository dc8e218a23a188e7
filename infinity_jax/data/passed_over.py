"""Counts of what a source passes over, by reason, and the damaged files that it leaves out."""

import pathlib

_ARCHIVER_FOLDER = '__MACOSX'  # macOS puts the metadata of packed files in it


class PassedOver:
    """Counts the files and lines of a source that are no records, by reason; lists damaged files.

    Attributes:
      damaged: (name, reason, share) of each damaged file, share of the bytes of all files.
    """

    def __init__(self):
        self._found: dict[str, tuple[int, str]] = {}
        self.damaged: list[tuple[str, str, float]] = []

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Counts files, members or lines under a reason; `name` is of the first of them."""
        before, first = self._found.get(reason, (0, name))
        self._found[reason] = before + count, first

    def add_damaged(self, paths: tuple[pathlib.Path, ...], number: int, reason: str) -> None:
        """Lists file `number` of a source's `paths`; none of its records is used."""
        sizes = [path.stat().st_size for path in paths]
        share = sizes[number] / max(sum(sizes), 1)
        self.damaged.append((paths[number].name, reason, share))

    @property
    def rows(self) -> list[tuple[str, int, str]]:
        """(reason, count, name of the first) of each reason, in order of appearance."""
        return [(reason, count, first) for reason, (count, first) in self._found.items()]


def described(rows: list[tuple[str, int, str]]) -> str:
    """The rows as the end of a line: '3 passed over: ending .gif (the first: a.gif)'."""
    return '; '.join(
        f'{count} passed over: {reason} (the first: {first})' for reason, count, first in rows
    )


def is_hidden(path: str) -> bool:
    """Whether a relative path has a hidden part, such as `._0001.jpg` or `.ipynb_checkpoints`."""
    parts = pathlib.PurePosixPath(path).parts
    return any((p.startswith('.') and p != '..') or p == _ARCHIVER_FOLDER for p in parts)


def ending_reason(path: str) -> str:
    """The reason why a file of another ending is passed over."""
    ending = pathlib.PurePosixPath(path).suffix.lower()
    return f'ending {ending}' if ending else 'no ending'
