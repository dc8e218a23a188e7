"""Reads and writes the transformer and tokenizer weights of a model folder.

Names are our parameter paths joined by dots, layers stacked. A part above 5 GB is split into shards
with an index. Besides its result, each function holds one tensor at a time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.sharding import read_placed, shardings_of
from infinity_jax.tokenizer.autoencoder import tokenizer_shapes
from infinity_jax.transformer.model import transformer_shapes
from infinity_jax.weights.safetensors_writer import ShardWriter, Spec
from infinity_jax.weights.weight_files import (
    LazyTensor,
    name_problems,
    open_safetensors,
    open_shards,
)

Params = dict[str, Any]
PartConfig = TransformerConfig | TokenizerConfig


def part_shapes(config: PartConfig, boxed: bool = False) -> Params:
    """The parameter tree that a part's configuration describes."""
    make = transformer_shapes if isinstance(config, TransformerConfig) else tokenizer_shapes
    return make(config, boxed)


def flat_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    """Dotted path -> shape."""
    return {name: tuple(leaf.shape) for name, leaf in flatten_dict(tree, sep='.').items()}


def part_shardings(config: PartConfig, mesh: Mesh) -> dict[str, NamedSharding]:
    """Dotted path -> sharding of that parameter."""
    return flatten_dict(shardings_of(part_shapes(config, boxed=True), mesh), sep='.')


def write_part(folder: Path, part: str, params: Params, dtype: str) -> None:
    """Writes parameters, cast to `dtype`, as PART.safetensors or shards.

    Raises:
      UserError: a value is beyond the dtype's range.
    """
    flat = flatten_dict(params, sep='.')
    specs = {n: Spec(tuple(a.shape), np.dtype(jnp.dtype(dtype))) for n, a in flat.items()}
    with ShardWriter(folder, part, specs) as writer:
        for name, leaf in flat.items():
            writer.write(name, cast(name, np.asarray(leaf), dtype))


def cast(name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """Casts `array`; a `UserError` names an array that would overflow."""
    dtype = np.dtype(jnp.dtype(dtype))
    if array.dtype == dtype:
        return array
    with np.errstate(over='ignore'):
        converted = array.astype(dtype)
    if np.isfinite(array).all() and not np.isfinite(converted).all():
        raise UserError(
            f'{name} reaches {np.abs(array).max():g}, beyond {dtype}; save as bfloat16 or float32'
        )
    return converted


def open_part(folder: Path, part: str, verify: bool = True) -> Mapping[str, LazyTensor]:
    """The unread tensors of PART.safetensors or of its shards.

    Args:
      verify: whether reading compares hashes and refuses NaN, infinity and kernels of zeros.
    """
    index = folder / f'{part}.safetensors.index.json'
    if index.is_file():
        return open_shards(index, verify=verify, refuse_values=True)
    path = folder / f'{part}.safetensors'
    return open_safetensors(path, verify=verify, refuse_values=True)


def read_part(
    folder: Path,
    part: str,
    config: PartConfig,
    problems: list[str],
    dtype: Any = np.float32,
    mesh: Mesh | None = None,
    verify: bool = True,
) -> Params | None:
    """Reads a part's weights, or adds everything that is wrong with them to `problems`.

    Args:
      folder: the model folder.
      part: 'transformer' or 'tokenizer'.
      config: its configuration.
      problems: grows by one line for every missing, unknown and misshapen tensor.
      dtype: of the result; None keeps the stored one.
      mesh: where the arrays go, each device's shards read by themselves; None gives numpy.
      verify: see `open_part`.

    Raises:
      UserError: a damaged tensor.
    """
    try:
        tensors = open_part(folder, part, verify)
    except UserError as error:
        problems.append(str(error))
        return None
    shapes = flat_shapes(part_shapes(config))
    wrong = name_problems(shapes, {name: tuple(t.shape) for name, t in tensors.items()})
    if wrong:
        problems += [f'{part}: {line}' for line in wrong]
        return None
    shardings = part_shardings(config, mesh) if mesh is not None else {}
    arrays = {}
    for name, shape in shapes.items():
        tensor = tensors[name]
        arrays[name] = read_placed(tensor.read, shape, dtype or tensor.dtype, shardings.get(name))
    return unflatten_dict(arrays, sep='.')
