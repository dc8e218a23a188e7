"""Opens weight files of the usual formats as a mapping from names to tensors on disk.

Reads `.safetensors`, files of `torch.save` (`.pth`, `.pt`, `.bin`), and folders of either, with or
without an index. Values are loaded by a tensor's `read()`.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import safetensors

from infinity_jax.errors import UserError
from infinity_jax.weights.torch_file.reader import read_torch_file
from infinity_jax.weights.torch_file.unpickler import TorchTensor

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


@dataclasses.dataclass(frozen=True)
class SafeTensor:
    """A tensor inside a safetensors file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, index: Index = ()) -> np.ndarray:
        with safetensors.safe_open(self.path, framework='numpy') as file:
            return file.get_slice(self.name)[index] if index else file.get_tensor(self.name)


def open_safetensors(path: Path) -> dict[str, SafeTensor]:
    """The tensors of one safetensors file, without their values."""
    tensors = {}
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            for name in file.keys():
                part = file.get_slice(name)
                code = part.get_dtype()
                if code not in SAFETENSORS_DTYPES:
                    raise UserError(f'{path}: {name} is of type {code}; wanted float or integer')
                dtype = np.dtype(SAFETENSORS_DTYPES[code])
                tensors[name] = SafeTensor(path, name, tuple(part.get_shape()), dtype)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f'{path}: not a whole safetensors file ({error}); copy it again') from None
    return tensors


def open_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Opens a weight file or folder.

    Returns:
      name -> LazyTensor. For a torch file that nests its state dict, the nested dict.

    Raises:
      UserError: no readable weights, or shards that are missing or differ from their index.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == '.safetensors':
        return open_safetensors(path)
    found = read_torch_file(path)
    if not isinstance(found, Mapping):
        raise UserError(f'{path}: holds a {type(found).__name__}; wanted a state dict')
    return dict(found)


def _open_folder(folder: Path) -> dict[str, Any]:
    """Opens a folder by its index, else its single weight file, else all its safetensors."""
    for name in INDEX_NAMES:
        if (folder / name).is_file():
            return open_shards(folder / name)
    for name in SINGLE_NAMES:
        if (folder / name).is_file():
            return open_weights(folder / name)
    others = sorted(folder.glob('*.safetensors'))
    if not others:
        wanted = ', '.join((*INDEX_NAMES, *SINGLE_NAMES))
        raise UserError(f'{folder}: no weights there; wanted one of {wanted} or *.safetensors')
    tensors: dict[str, Any] = {}
    for shard in others:
        tensors.update(open_safetensors(shard))
    return tensors


def open_shards(index: Path) -> dict[str, Any]:
    """The tensors that an index lists, from the shards in its folder."""
    folder = index.parent
    weight_map = read_json(index).get('weight_map')
    if not isinstance(weight_map, dict):
        raise UserError(f'{index}: has no weight_map; wanted name -> shard')
    shards: dict[str, dict[str, Any]] = {}
    absent = []
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise UserError(f'{index}: names {shard!r}; wanted a file in the same folder')
        if (folder / shard).is_file():
            shards[shard] = open_weights(folder / shard)
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


def read_json(path: Path) -> dict[str, Any]:
    """Parses a file with a JSON object.

    Raises:
      UserError: no such file, or no JSON object in it.
    """
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: not readable JSON ({error})') from None
    if not isinstance(found, dict):
        raise UserError(f'{path}: holds a JSON {type(found).__name__}; wanted an object')
    return found
