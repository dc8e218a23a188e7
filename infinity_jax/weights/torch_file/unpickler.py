"""Unpickles files of torch without torch and without executing their content.

The unpickler accepts the few names that plain state dicts need. Objects of all other names become
placeholders: nothing is looked up, imported or executed. Tensors stay on disk; `reader` and
`legacy`, for the two file layouts, provide their elements.
"""

import abc
import collections
import dataclasses
import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import ml_dtypes
import numpy as np

from infinity_jax.errors import UserError

STORAGE_DTYPES = {
    'FloatStorage': np.float32,
    'DoubleStorage': np.float64,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}


MAX_PICKLE_BYTES = 2**28  # a description of a million tensors has less
MAX_INSTRUCTIONS = 10**6  # a tensor needs about 25; reading more would seem a hang
MAX_OVERLAPPING = 2**28  # elements of a tensor that has more of them than its storage


@dataclasses.dataclass(frozen=True)
class Storage(abc.ABC):
    """A flat sequence of elements inside the file."""

    path: Path
    dtype: np.dtype
    size: int

    @abc.abstractmethod
    def elements(self) -> np.ndarray:
        """All elements: a view of the mapped file, or a copy if they are compressed."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError('it changes a storage that it has named')


@dataclasses.dataclass(frozen=True)
class TorchTensor:
    """A tensor on disk. `read()` returns it as a new numpy array."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def check_bounds(self, elements: int) -> None:
        """Raises `UserError` if the tensor exceeds a storage of `elements` elements."""
        if 0 in self.shape:
            return
        pairs = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((n - 1) * s for n, s in pairs)
        overlapping = math.prod(self.shape) > max(elements, MAX_OVERLAPPING)
        if min((self.offset, *self.shape, *self.strides)) < 0 or last >= elements or overlapping:
            raise UserError(
                f'{self.storage.path}: a tensor of shape {self.shape} reaches element '
                f'{last} of a storage of {elements}, or is much larger than it: the file is '
                'damaged, copy it again'
            )

    def read(self, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """Reads this tensor, or a part of it, as a contiguous array in row-major order."""
        flat = self.storage.elements()
        self.check_bounds(flat.size)  # as_strided checks nothing
        size = self.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :],
            self.shape,
            tuple(s * size for s in self.strides),
            writeable=False,
        )
        return np.array(view[index], order='C')

    def __setstate__(self, state: Any) -> None:
        """Accepts and ignores the state of a parameter in files of torch before 0.4."""
        if not (isinstance(state, tuple) and len(state) == 3):
            raise ValueError('it changes a tensor that it has built')


class Opaque:
    """A placeholder for an object of another name; accepts all that a pickle does, without effect.

    Attributes:
      pickled_name: the name that the pickle asks for.
    """

    pickled_name = ''

    def __new__(cls, *unused: Any, **also_unused: Any) -> 'Opaque':
        return super().__new__(cls)

    def __init__(self, *unused: Any, **also_unused: Any):
        pass

    def __call__(self, *unused: Any, **also_unused: Any) -> 'Opaque':
        return self

    def __repr__(self) -> str:
        return self.pickled_name

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    extend = add = append


class Unpickler(pickle.Unpickler):
    """Builds containers, numbers and `TorchTensor`s; all else becomes `Opaque`.

    Args:
      file: at the start of a pickle; after `load()`, at its end.
      path: of that file, for errors.
      storage: (key, dtype, number of elements) -> storage.
    """

    def __init__(
        self, file: IO[bytes], path: Path, storage: Callable[[str, np.dtype, int], Storage]
    ):
        super().__init__(file, encoding='utf-8')
        self.path = path
        self.storage = storage
        self.opaque: dict[str, type[Opaque]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('collections', 'OrderedDict'):
            return collections.OrderedDict
        if (module, name) == ('torch', 'Size'):
            return tuple
        # Files of torch before 0.4 use the name without v2, which has no gradients and hooks.
        if module == 'torch._utils' and name in ('_rebuild_tensor', '_rebuild_tensor_v2'):
            return self._tensor
        if (module, name) in (
            ('torch._utils', '_rebuild_parameter'),
            ('torch._utils', '_rebuild_parameter_with_state'),
            ('torch.nn.parameter', 'Parameter'),  # torch before 0.4
        ):
            return lambda tensor, *unused: tensor
        if module in ('torch', 'torch.storage') and name in STORAGE_DTYPES:
            return name  # used as a plain tag in persistent_load
        full_name = f'{module}.{name}'
        return self.opaque.setdefault(
            full_name, type('Opaque', (Opaque,), {'pickled_name': full_name})
        )

    def persistent_load(self, key: Any) -> Storage | Opaque:
        # The sixth item names the storage that this one is a view of; torch no longer writes it.
        if not (isinstance(key, tuple) and key[:1] == ('storage',) and key[5:] in ((), (None,))):
            raise UserError(f'{self.path}: unknown persistent id {str(key)[:60]}; wanted a storage')
        _, tag, name, _, size = key[:5]
        if isinstance(tag, type) and issubclass(tag, Opaque):  # of elements that numpy lacks
            return self.opaque_storage(tag)
        if size < 0:
            raise ValueError(f'a storage of {size} elements')
        return self.storage(name, np.dtype(STORAGE_DTYPES[tag]), size)

    def opaque_storage(self, tag: type[Opaque]) -> Opaque:
        """A placeholder for a storage of another type."""
        return tag()

    def _tensor(self, storage, offset, shape, strides, *unused) -> TorchTensor | Opaque:
        if isinstance(storage, Opaque):
            return storage
        shape = tuple(shape)
        tensor = TorchTensor(storage, 0 if 0 in shape else offset, shape, tuple(strides))
        tensor.check_bounds(storage.size)
        return tensor


def load_pickle(
    file: IO[bytes], path: Path, storage: Callable[[str, np.dtype, int], Storage]
) -> Any:
    """`Unpickler.load()` after a check that the pickle asks for no more memory than it has bytes.

    Raises:
      UserError: it does.
    """
    start, puts = file.tell(), 0
    instructions = pickletools.genops(cast(IO[bytes], _Bounded(file, path)))
    for number, (opcode, argument, _) in enumerate(instructions):
        if number > MAX_INSTRUCTIONS:
            raise UserError(
                f'{path}: its pickle has more than {MAX_INSTRUCTIONS} instructions, which a file '
                'of plain tensors does not need; copy it again, or save the bare state dict'
            )
        if not isinstance(argument, int):
            continue
        if opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT'):
            puts += 1
            _check_size(path, argument, 2 * puts + 256)
        elif opcode.name == 'FRAME':
            _check_size(path, argument, MAX_PICKLE_BYTES)
    file.seek(start)
    return Unpickler(file, path, storage).load()


class _Bounded:
    """A stream that refuses to read more than a description of tensors can have."""

    def __init__(self, file: IO[bytes], path: Path):
        self.file, self.path = file, path
        self.readline, self.tell = file.readline, file.tell

    def read(self, size: int) -> bytes:
        _check_size(self.path, size, MAX_PICKLE_BYTES)
        return self.file.read(size)


def _check_size(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise UserError(
            f'{path}: its pickle asks for room for {size} items or bytes, which a file of plain '
            f'tensors does not need (at most {limit} here); copy the file again'
        )
