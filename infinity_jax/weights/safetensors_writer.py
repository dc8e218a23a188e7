"""Writes weight files tensor by tensor, so that memory holds one tensor instead of a whole file.

The safetensors library writes from a dictionary of all tensors. The format itself is a JSON header
and the raw bytes, so every tensor, or a part of it, can be written to its place separately.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from infinity_jax.weights.integrity import DIGITS, byte_view, scan
from infinity_jax.weights.weight_files import HASHES, SAFETENSORS_DTYPES

SHARD_BYTES = 5 * 10**9  # files above this are split
_CODES = {np.dtype(dtype): code for code, dtype in SAFETENSORS_DTYPES.items()}


class Spec(NamedTuple):
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def raw_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in row-major order, copied only if it is not contiguous."""
    return byte_view(array).data


class SafetensorsWriter:
    """Writes one safetensors file, tensors in any order, with their hashes; a context manager.

    Args:
      path: overwritten.
      specs: tensor name -> shape and dtype.
      metadata: more texts for the header.
    """

    def __init__(
        self, path: Path, specs: Mapping[str, Spec], metadata: Mapping[str, str] | None = None
    ):
        self._path, self._specs = path, dict(specs)
        self._metadata = {'format': 'pt', **(metadata or {})}
        self._entries: dict[str, Any] = {}
        self._hashes = dict.fromkeys(specs, '0' * DIGITS)  # as long as those that replace it
        self._starts: dict[str, int] = {}
        end = 0
        # Wide elements first: every tensor then starts at a multiple of its element's size.
        for name in sorted(specs, key=lambda n: -specs[n].dtype.itemsize):
            spec, start = specs[name], end
            end = start + spec.nbytes
            self._entries[name] = {
                'dtype': _CODES[spec.dtype],
                'shape': list(spec.shape),
                'data_offsets': [start, end],
            }
            self._starts[name] = start
        header = self._header()
        self._data = len(header)
        self._missing = {name: spec.nbytes for name, spec in specs.items()}
        self._layered: set[str] = set()
        self._file = open(path, 'wb')
        self._file.write(header)
        self._file.truncate(self._data + end)

    def write(self, name: str, array: np.ndarray, layer: int | None = None) -> None:
        """Writes a tensor, or one layer of a stacked tensor, to its place."""
        spec = self._specs[name]
        shape = spec.shape if layer is None else spec.shape[1:]
        assert array.shape == shape and array.dtype == spec.dtype, (name, array.shape, array.dtype)
        self._file.seek(self._data + self._starts[name] + array.nbytes * (layer or 0))
        self._file.write(raw_bytes(array))
        self._missing[name] -= array.nbytes
        if layer is None:
            self._hashes[name] = scan(byte_view(array), spec.dtype).hash
        else:
            self._layered.add(name)

    def _header(self) -> bytes:
        metadata = {**self._metadata, HASHES: json.dumps(self._hashes)}
        text = json.dumps({'__metadata__': metadata, **self._entries}).encode()
        text += b' ' * (-len(text) % 8)
        return len(text).to_bytes(8, 'little') + text

    def _finish(self) -> None:
        """Hashes what was written layer by layer, from the file, and writes the final header."""
        self._file.flush()
        for name in self._layered:
            spec = self._specs[name]
            if spec.nbytes:
                start = self._data + self._starts[name]
                content = np.memmap(self._path, np.uint8, 'r', start, (spec.nbytes,))
                self._hashes[name] = scan(content, spec.dtype).hash
        self._file.seek(0)
        self._file.write(self._header())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *unused) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
        forgotten = [name for name, size in self._missing.items() if size]
        assert kind or not forgotten, f'never written: {", ".join(forgotten)}'


class ShardWriter:
    """Writes `STEM.safetensors` or, above `limit` bytes, numbered shards with an index.

    Args:
      folder: of the files.
      stem: of their names.
      specs: tensor name -> shape and dtype, in the order in which they fill shards.
      limit: bytes per shard; a larger tensor has its own shard.
      index: name of the index file; '' writes STEM.safetensors.index.json, and only if there are
        several shards.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        specs: Mapping[str, Spec],
        limit: int = SHARD_BYTES,
        index: str = '',
    ):
        groups = group_by_size({name: spec.nbytes for name, spec in specs.items()}, limit)
        self.names = shard_names(f'{stem}.safetensors', len(groups))
        self._writer: dict[str, SafetensorsWriter] = {}
        weight_map: dict[str, str] = {}
        for file_name, group in zip(self.names, groups, strict=True):
            writer = SafetensorsWriter(folder / file_name, {n: specs[n] for n in group})
            self._writer |= dict.fromkeys(group, writer)
            weight_map |= dict.fromkeys(group, file_name)
        if index or len(groups) > 1:
            write_index(folder / (index or f'{stem}.safetensors.index.json'), specs, weight_map)

    def write(self, name: str, array: np.ndarray, layer: int | None = None) -> None:
        """Writes a tensor, or one layer of a stacked tensor, to its shard."""
        self._writer[name].write(name, array, layer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *unused) -> None:
        for writer in set(self._writer.values()):
            writer.__exit__(kind)


def group_by_size(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Splits names, in order, into groups of at most `limit` bytes; at least one group."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def shard_names(name: str, count: int) -> list[str]:
    """File names of shards: 'x.ending' for one, else 'x-00001-of-00002.ending' and so on."""
    if count == 1:
        return [name]
    path = Path(name)
    return [f'{path.stem}-{i:05}-of-{count:05}{path.suffix}' for i in range(1, count + 1)]


def write_index(path: Path, specs: Mapping[str, Spec], weight_map: Mapping[str, str]) -> None:
    """Writes the index of shards, as Hugging Face's loaders read it."""
    total = sum(spec.nbytes for spec in specs.values())
    content = {'metadata': {'total_size': total}, 'weight_map': dict(weight_map)}
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
