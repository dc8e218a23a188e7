"""Hashes and values of stored tensors: damage is refused by name instead of being computed with.

The hash of a tensor is the SHA-256 of the SHA-256 of each MiB of its bytes, in row-major order, cut
to 128 bits. Blocks can so be hashed by several threads. The same pass finds the largest magnitude,
which shows NaN, infinity and tensors of zeros alone. Whole files have the same kind of hash.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import ml_dtypes
import numpy as np

BLOCK = 2**20  # bytes; a part of the format
DIGITS = 32  # hexadecimal digits per hash
MAX_THREADS = 8
_READ = 16 * BLOCK  # bytes of a file that a thread reads at a time
# dtype -> the unsigned integer of its size, the bits of a magnitude, the bits of infinity. Of two
# floats without their signs the larger one has the larger bits; NaN is above infinity.
_MAGNITUDES = {
    np.dtype(np.float64): (np.uint64, 2**63 - 1, 0x7FF << 52),
    np.dtype(np.float32): (np.uint32, 2**31 - 1, 0xFF << 23),
    np.dtype(np.float16): (np.uint16, 2**15 - 1, 0x1F << 10),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 2**15 - 1, 0xFF << 7),
}
# Last names of the arrays that are never zero: matrices, convolutions and embeddings. Biases,
# norms and the second half of an adapter begin at zero.
_NEVER_ZERO = ('kernel', 'weight', 'token_embedding', 'a')


class Scan(NamedTuple):
    """Hash of a tensor's bytes, and the bits of its largest magnitude (None for integers)."""

    hash: str
    peak: int | None


def byte_view(array: np.ndarray) -> np.ndarray:
    """The bytes of an array in row-major order, copied only if it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def scan(content: np.ndarray, dtype: np.dtype) -> Scan:
    """Hash and largest magnitude of a tensor.

    Args:
      content: its bytes, uint8; may be a mapped file.
      dtype: of its elements.
    """

    def of_block(start: int) -> tuple[bytes, int | None]:
        block = content[start : start + BLOCK]
        return hashlib.sha256(block.data).digest(), _peak(block, dtype)

    blocks = _in_threads(of_block, range(0, len(content), BLOCK))
    peaks = [peak for _, peak in blocks if peak is not None]
    return Scan(_combined([part for part, _ in blocks]), max(peaks, default=None))


def hash_file(path: str | os.PathLike) -> str:
    """The hash of a file's bytes, read in parts by several threads.

    Raises:
      OSError: the file is missing or cannot be read.
    """

    def of_part(start: int) -> bytes:
        with open(path, 'rb') as file:
            file.seek(start)
            part = memoryview(file.read(_READ))
        blocks = (part[i : i + BLOCK] for i in range(0, len(part), BLOCK))
        return b''.join(hashlib.sha256(block).digest() for block in blocks)

    return _combined(_in_threads(of_part, range(0, os.path.getsize(path), _READ)))


Result = TypeVar('Result')


def _in_threads(function: Callable[[int], Result], starts: Sequence[int]) -> list[Result]:
    """`function` of each start; hashlib, numpy and reading release the interpreter lock."""
    if len(starts) <= 4:
        return list(map(function, starts))
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS)) as pool:
        return list(pool.map(function, starts))


def _combined(digests: list[bytes]) -> str:
    return hashlib.sha256(b''.join(digests)).hexdigest()[:DIGITS]


def _peak(block: np.ndarray, dtype: np.dtype) -> int | None:
    if dtype not in _MAGNITUDES:
        return None
    unsigned, magnitude, _ = _MAGNITUDES[dtype]
    return int((block.view(unsigned) & unsigned(magnitude)).max())


def value_problem(
    name: str, shape: tuple[int, ...], dtype: np.dtype, peak: int | None
) -> str | None:
    """A sentence about values that no trained tensor has; None if there are none.

    Args:
      name: of the tensor; its last part decides whether zeros are damage.
      shape, dtype: of the tensor.
      peak: of its `Scan`.
    """
    if peak is None:
        return None
    if peak >= _MAGNITUDES[dtype][2]:
        return f'{name} holds NaN or infinite values'
    never_zero = name.rpartition('.')[2] in _NEVER_ZERO and np.prod(shape) > 1
    return f'every value of {name} is zero' if peak == 0 and never_zero else None


def check_values(name: str, array: np.ndarray) -> str | None:
    """`value_problem` of an array in memory."""
    peaks = [_peak(block, array.dtype) for block in _blocks(byte_view(array))]
    found = [peak for peak in peaks if peak is not None]
    return value_problem(name, array.shape, array.dtype, max(found, default=None))


def _blocks(content: np.ndarray) -> list[np.ndarray]:
    return [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)]
