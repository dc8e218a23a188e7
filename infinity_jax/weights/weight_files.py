"""Opens weight files of the usual formats as a mapping from names to tensors on disk.

Reads `.safetensors`, files of `torch.save` (`.pth`, `.pt`, `.bin`), and folders of either, with or
without an index. Values are loaded by a tensor's `read()`.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import safetensors

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.ranges import short
from infinity_jax.runtime.hub import check_content
from infinity_jax.runtime.local_files import open_regular
from infinity_jax.runtime.remote_copy import local_copy
from infinity_jax.weights.integrity import byte_view, scan, value_problem
from infinity_jax.weights.torch_file.reader import read_torch_file
from infinity_jax.weights.torch_file.unpickler import Opaque, TorchTensor

SAFETENSORS_DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U8': np.uint8,
    'BOOL': np.bool_,
}
HASHES = 'hashes'  # key of a safetensors file's metadata: JSON of tensor name -> hash
Index = tuple[int | slice, ...]  # into a tensor, as numpy takes it
INDEX_NAMES = ('model.safetensors.index.json', 'pytorch_model.bin.index.json')
SINGLE_NAMES = ('model.safetensors', 'pytorch_model.bin')


class LazyTensor(Protocol):
    """The interface of all readers: shape and dtype are known, values are loaded by `read()`.

    `read(index)` loads only that part of the tensor.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def read(self, index: Index = ()) -> np.ndarray: ...


@dataclasses.dataclass(eq=False)
class SafeTensor:
    """A tensor inside a safetensors file.

    Its first `read()` verifies the whole tensor, unless `verify` is False: in memory if it is read
    whole, otherwise by one more pass over its bytes in the file.

    Attributes:
      start: byte of the file at which its values begin.
      hash: as it was saved; None: the file has no hashes.
      verify: whether hash and values are compared.
      refuse_values: whether NaN, infinity and kernels of zeros are damage.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    hash: str | None
    verify: bool
    refuse_values: bool

    def read(self, index: Index = ()) -> np.ndarray:
        whole = all(
            isinstance(part, slice) and part.indices(size) == (0, size, 1)
            for part, size in zip(index, self.shape, strict=False)
        )
        if self.verify and not whole:
            size = math.prod(self.shape) * self.dtype.itemsize
            self._check(np.memmap(self.path, np.uint8, 'r', self.start, (size,)) if size else None)
        with safetensors.safe_open(self.path, framework='numpy') as file:
            if not whole:
                return file.get_slice(self.name)[index]
            array = file.get_tensor(self.name)
        if self.verify:
            self._check(byte_view(array) if array.size else None)
        return array

    def _check(self, content: np.ndarray | None) -> None:
        """Raises `UserError` if these bytes are not those that were saved; checks only once."""
        if content is None:
            return
        hash, peak = scan(content, self.dtype)
        if self.hash not in (None, hash):
            raise UserError(
                f'{self.path}: {self.name} is damaged: it has the hash {hash}, and was saved with '
                f'{self.hash}; copy the file again'
            )
        if self.refuse_values and (line := value_problem(self.name, self.shape, self.dtype, peak)):
            raise UserError(f'{self.path}: {line}: the file is damaged, copy it again')
        self.verify = False


def open_safetensors(
    path: Path, *, verify: bool = True, refuse_values: bool = False
) -> dict[str, SafeTensor]:
    """The tensors of one safetensors file, without their values; for the options see `SafeTensor`.

    Raises:
      UserError: no such file, or not a whole safetensors file with its hashes.
    """
    tensors = {}
    open_regular(path).close()
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            hashes = _hashes(path, file.metadata() or {}, file.keys())
            starts = _starts(path)
            for name in file.keys():
                part = file.get_slice(name)
                code = part.get_dtype()
                if code not in SAFETENSORS_DTYPES:
                    raise UserError(f'{path}: {name} is of type {code}; wanted float or integer')
                dtype, shape = np.dtype(SAFETENSORS_DTYPES[code]), tuple(part.get_shape())
                options = starts[name], hashes.get(name), verify, refuse_values
                tensors[name] = SafeTensor(path, name, shape, dtype, *options)
    except (safetensors.SafetensorError, OSError) as error:
        if path.is_file():
            check_content(path)
        raise UserError(f'{path}: not a whole safetensors file ({error}); copy it again') from None
    return tensors


def _hashes(path: Path, metadata: Mapping[str, str], names: list[str]) -> dict[str, str]:
    """Tensor name -> hash, from a file's metadata; empty for files of other writers."""
    if HASHES not in metadata:
        return {}
    try:
        hashes = json.loads(metadata[HASHES])
    except (ValueError, RecursionError):
        hashes = None
    if not isinstance(hashes, dict) or set(hashes) != set(names):
        raise UserError(
            f'{path}: its hashes are not one per tensor: the file is damaged, copy it again'
        )
    return hashes


def _starts(path: Path) -> dict[str, int]:
    """Tensor name -> byte at which its values begin, of a file with a whole header."""
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(length))
    return {
        name: 8 + length + entry['data_offsets'][0]
        for name, entry in header.items()
        if name != '__metadata__'
    }


def open_weights(
    path: str | os.PathLike[str], *, verify: bool = True, refuse_values: bool = False
) -> dict[str, Any]:
    """Opens a weight file or folder; for the options, of safetensors, see `SafeTensor`.

    Returns:
      name -> LazyTensor. For a torch file that nests its state dict, the nested dict.

    Raises:
      UserError: no readable weights, or shards that are missing or differ from their index.
    """
    path = local_copy(path)
    if path.is_dir():
        return _open_folder(path, verify=verify, refuse_values=refuse_values)
    if path.suffix == '.safetensors' or _is_safetensors(path):
        return open_safetensors(path, verify=verify, refuse_values=refuse_values)
    found = read_torch_file(path)
    if not isinstance(found, Mapping):
        raise UserError(
            f'{path}: holds a {kind_of(found)}; wanted a state dict, as '
            'torch.save(model.state_dict(), PATH) writes'
        )
    return dict(found)


def _is_safetensors(path: Path) -> bool:
    """Whether a file of another ending begins as a safetensors file: a length, then JSON."""
    try:
        with open(path, 'rb') as file:
            start = file.read(9)
    except OSError:
        return False
    return start[8:] == b'{' and start[6:8] == bytes(2)


def kind_of(value: Any) -> str:
    """The type of a value in a torch file, as a word for messages."""
    if isinstance(value, type) and issubclass(value, Opaque):  # a name that nothing was done to
        return value.pickled_name
    return value.pickled_name if isinstance(value, Opaque) else type(value).__name__


def _open_folder(folder: Path, **options: bool) -> dict[str, Any]:
    """Opens a folder by its index, else its single weight file, else all its safetensors."""
    # An index without any of its shards is a leftover of a download of the other format.
    indexes = [folder / name for name in INDEX_NAMES if (folder / name).is_file()]
    for index in sorted(indexes, key=lambda index: not any(map(Path.is_file, _shards_of(index)))):
        if any(map(Path.is_file, _shards_of(index))) or not _single_file(folder):
            return open_shards(index, **options)
    if single := _single_file(folder):
        return open_weights(single, **options)
    others = sorted(folder.glob('*.safetensors'))
    if not others:
        wanted = ', '.join((*INDEX_NAMES, *SINGLE_NAMES))
        raise UserError(f'{folder}: no weights there; wanted one of {wanted} or *.safetensors')
    tensors: dict[str, Any] = {}
    for shard in others:
        found = open_safetensors(shard, **options)
        if twice := next((name for name in found if name in tensors), ''):
            raise UserError(
                f'{folder}: {twice} is in {tensors[twice].path.name} and in {shard.name}; name one '
                'file, or keep the shards of one model there'
            )
        tensors.update(found)
    return tensors


def _single_file(folder: Path) -> Path | None:
    return next((folder / name for name in SINGLE_NAMES if (folder / name).is_file()), None)


def _shards_of(index: Path) -> list[Path]:
    """The files that an index names."""
    return [index.parent / shard for shard in sorted({*_weight_map(index).values()})]


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    weight_map = read_json(index).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f'{index}: has no weight_map; wanted name -> shard')
    for shard in weight_map.values():
        if not isinstance(shard, str) or not shard or Path(shard).name != shard or '\0' in shard:
            raise UserError(f'{index}: names {short(shard)}; wanted a file in the same folder')
    return weight_map


def open_shards(index: Path, *, verify: bool = True, refuse_values: bool = False) -> dict[str, Any]:
    """The tensors that an index lists, from the shards in its folder; options as `open_weights`."""
    folder = index.parent
    weight_map = _weight_map(index)
    shards: dict[str, dict[str, Any]] = {}
    absent = []
    for shard in sorted(set(weight_map.values())):
        if (folder / shard).is_file():
            shards[shard] = open_weights(folder / shard, verify=verify, refuse_values=refuse_values)
        else:
            absent.append(shard)
    if absent:
        raise UserError(f'{folder}: shards missing: {", ".join(absent)}; copy them there')
    lost = [n for n, shard in weight_map.items() if n not in shards[shard]]
    extra = [n for shard in shards.values() for n in shard if n not in weight_map]
    if lost or extra:
        raise UserError(
            f'{index}: at odds with its shards: listed but absent: {", ".join(lost) or "none"}; '
            f'there but not listed: {", ".join(extra) or "none"}'
        )
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def name_problems(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """The differences between two name -> shape tables, one string per name."""
    problems = [f'missing {n} {tuple(s)}' for n, s in wanted.items() if n not in found]
    problems += [f'unknown {n} {tuple(s)}' for n, s in found.items() if n not in wanted]
    problems += [
        f'{n} has shape {tuple(found[n])}, wanted {tuple(s)}'
        for n, s in wanted.items()
        if n in found and tuple(found[n]) != tuple(s)
    ]
    return problems


def is_tensor(value: Any) -> bool:
    return isinstance(value, (SafeTensor, TorchTensor))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; `ValueError` for a name that it has twice, of which one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f'{twice!r} is there twice')
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Parses a file with a JSON object.

    Raises:
      UserError: no such file, or no JSON object in it.
    """
    with open_regular(path) as file:
        content = file.read()
    try:
        found = json.loads(content.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        check_content(path)
        raise UserError(
            f'{path}: not readable JSON ({in_one_line(error, 200)}); copy the file again'
        ) from None
    if not isinstance(found, dict):
        raise UserError(f'{path}: holds a JSON {type(found).__name__}; wanted an object')
    return found
