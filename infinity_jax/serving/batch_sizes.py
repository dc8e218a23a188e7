"""The compiled batch sizes that may be used: those that leave the bytes of images as they are.

Another batch size is another program, which may round differently; a sampled bit may then fall the
other way. So a size is used only after it has generated the same codes and pixels as the smallest
size, for images that were asked for.
"""

import dataclasses
from collections.abc import Hashable, Sequence

from infinity_jax.errors import UserError


@dataclasses.dataclass
class _Tried:
    """Batch sizes of one program."""

    equal: list[int]
    unequal: list[int]


class BatchSizes:
    """Batch sizes per program, of which the smallest defines every image."""

    def __init__(self, sizes: Sequence[int]):
        """Takes the sizes in rising order.

        Raises:
          UserError: none, or not in rising order from 1.
        """
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
            raise UserError(
                f'batch sizes are {list(sizes)}; wanted rising numbers from 1, such as 2,4,8'
            )
        self.sizes = tuple(sizes)
        self._tried: dict[Hashable, _Tried] = {}

    @property
    def smallest(self) -> int:
        """The size that needs no comparison."""
        return self.sizes[0]

    @property
    def largest(self) -> int:
        """Images that one batch takes, at most."""
        return self.sizes[-1]

    def equal(self, program: Hashable) -> tuple[int, ...]:
        """The sizes of a program that are known to generate the same bytes."""
        return tuple(self._of(program).equal)

    def fitting(self, program: Hashable, images: int) -> int:
        """The smallest size of these that holds so many images, or the largest of them."""
        equal = self._of(program).equal
        return next((size for size in equal if size >= images), equal[-1])

    def untried(self, program: Hashable, images: int) -> int | None:
        """The next size to compare, if so many images would use it."""
        tried = self._of(program)
        if images <= tried.equal[-1]:
            return None
        known = (*tried.equal, *tried.unequal)
        return next((size for size in self.sizes if size not in known), None)

    def record(self, program: Hashable, size: int, equal: bool) -> None:
        """Notes the outcome of a comparison with the smallest size."""
        tried = self._of(program)
        (tried.equal if equal else tried.unequal).append(size)

    def _of(self, program: Hashable) -> _Tried:
        return self._tried.setdefault(program, _Tried([self.smallest], []))
