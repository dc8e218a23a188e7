"""Low-rank adapters of the blocks' matrices (Hu et al. 2021), as pure functions of parameter trees.

A kernel W of a block becomes W + (alpha / rank) · A B, with A (layers, in, rank) and B (layers,
rank, out). There are two ways. `attach` puts A and B next to the kernel, and `Linear` adds
(x A) B to x W: W may be in 8 bits, and no gradient has the size of W. `merge` computes the sum
W + A B on the host.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax.errors import UserError
from infinity_jax.ranges import Range, check_ranges, real

MATRICES = (
    'self_attention.qkv',
    'self_attention.out',
    'cross_attention.query',
    'cross_attention.key_value',
    'cross_attention.out',
    'ffn.up',
    'ffn.down',
)
LORA_A, LORA_B = 'lora_a', 'lora_b'  # next to a kernel in the parameter tree
BASE_DTYPES = ('', 'float32', 'bfloat16', 'int8')
LARGEST_RANK = 2**13
LARGEST_ALPHA = 1e6


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapters that are trained instead of the transformer's own weights."""

    rank: int = 0  # 0: no adapters, the weights themselves are trained
    alpha: float = 16.0  # the update is scaled by alpha / rank
    # Full names or first parts, such as ('self_attention', 'ffn.up').
    matrices: tuple[str, ...] = MATRICES
    base_dtype: str = ''  # of the frozen kernels: float32, bfloat16, int8; '': of their products

    def __post_init__(self):
        ranges = {'rank': Range(0, LARGEST_RANK), 'alpha': real(0, LARGEST_ALPHA)}
        check_ranges(self, 'lora.', ranges)
        for name in self.matrices:
            if not any(_names(name, matrix) for matrix in MATRICES):
                raise UserError(
                    f'lora.matrices names {name!r}; wanted some of {", ".join(MATRICES)}'
                )
        if self.base_dtype not in BASE_DTYPES:
            raise UserError(
                f'lora.base_dtype is {self.base_dtype!r}; wanted {", ".join(BASE_DTYPES[1:])}, or '
                "'' for the dtype of the products"
            )
        if not self.matrices:
            raise UserError(f'lora.matrices is empty; wanted some of {", ".join(MATRICES)}')
        if self.base_dtype and not self.rank:
            raise UserError(
                f'lora.base_dtype is {self.base_dtype!r} but lora.rank is 0, so that no weights '
                'are frozen; set lora.rank to 1 or more, or leave lora.base_dtype out'
            )

    @property
    def scale(self) -> float:
        """The factor of A B: alpha / rank."""
        return self.alpha / self.rank

    @property
    def targets(self) -> tuple[str, ...]:
        """Full names of the matrices, in the order of `MATRICES`."""
        return tuple(m for m in MATRICES if any(_names(name, m) for name in self.matrices))


def _names(name: str, matrix: str) -> bool:
    return name == matrix or matrix.startswith(f'{name}.')


def init_adapters(key: jax.Array, boxed_transformer: Any, config: LoraConfig) -> Any:
    """Initialises adapters: A is normal with variance 1/in, B is zero, so the sum is unchanged.

    Args:
      key: random key.
      boxed_transformer: the transformer's boxed shapes; A and B take their logical axes from
        the kernels.
      config: the matrices and the rank.

    Returns:
      Boxed float32 parameters {'self_attention': {'qkv': {'a', 'b'}, …}, …}.
    """
    kernels = flatten_dict(boxed_transformer['blocks'], sep='.')
    adapters = {}
    for number, name in enumerate(config.targets):
        box = kernels[f'{name}.kernel']
        (layers, inputs, outputs), (stacked, axis_in, axis_out) = box.value.shape, box.names
        a_key = jax.random.fold_in(key, number)
        a = jax.random.normal(a_key, (layers, inputs, config.rank)) * inputs**-0.5
        b = jnp.zeros((layers, config.rank, outputs))
        adapters[f'{name}.a'] = nn.LogicallyPartitioned(a, (stacked, axis_in, None))
        adapters[f'{name}.b'] = nn.LogicallyPartitioned(b, (stacked, None, axis_out))
    return unflatten_dict(adapters, sep='.')


class LowRank(NamedTuple):
    """The update A B of a stacked kernel; all factors are inside B.

    Attributes:
      a: (layers, in, rank), float32.
      b: (layers, rank, out), float32.
    """

    a: Any
    b: Any


Updates = Mapping[str, LowRank]  # by name of the matrix


def updates_of(adapters: Any, config: LoraConfig, strength: float = 1.0) -> Updates:
    """The updates of adapters, a tree as from `init_adapters`: strength · (alpha / rank) · A B."""
    flat, factor = flatten_dict(adapters, sep='.'), strength * config.scale
    return {m: LowRank(flat[f'{m}.a'], factor * flat[f'{m}.b']) for m in config.targets}


def summed(updates: Iterable[Updates]) -> Updates:
    """The sum of several updates: their ranks are added, [A₁ A₂] [B₁; B₂] = A₁ B₁ + A₂ B₂."""
    result: dict[str, LowRank] = {}
    for each in updates:
        for name, (a, b) in each.items():
            if name in result:
                a = np.concatenate([result[name].a, a], axis=2)
                b = np.concatenate([result[name].b, b], axis=1)
            result[name] = LowRank(a, b)
    return result


def attach(transformer: Any, updates: Updates) -> Any:
    """A transformer's parameters, or shapes, with the updates next to their kernels."""
    flat = flatten_dict(transformer, sep='.')
    for name, (a, b) in updates.items():
        flat[f'blocks.{name}.{LORA_A}'], flat[f'blocks.{name}.{LORA_B}'] = a, b
    return unflatten_dict(flat, sep='.')


def merge(transformer: Any, updates: Updates, dtype: Any = np.float32) -> Any:
    """A transformer's parameters with the updates added to their kernels, on the host.

    Args:
      transformer: numpy arrays.
      updates: numpy arrays.
      dtype: of the changed kernels. The sum is computed in float32 and rounded once.
    """
    flat = flatten_dict(transformer, sep='.')
    for name, (a, b) in updates.items():
        path = f'blocks.{name}.kernel'
        kernel, merged = flat[path], np.empty(flat[path].shape, dtype)
        for layer in range(len(merged)):  # without a float32 copy of the whole stack
            update = np.asarray(a[layer], np.float32) @ np.asarray(b[layer], np.float32)
            merged[layer] = np.asarray(kernel[layer], np.float32) + update
        flat[path] = merged
    return unflatten_dict(flat, sep='.')


def joined(frozen: Any, params: Any, config: LoraConfig) -> dict[str, Any]:
    """Joins frozen and trained parameters, by part; adapters come next to the frozen kernels."""
    if not config.rank:
        return {**frozen, **params}
    others = {name: tree for name, tree in params.items() if name != 'lora'}
    transformer = attach(frozen['transformer'], updates_of(params['lora'], config))
    return {**frozen, **others, 'transformer': transformer}
