"""Low-rank adapters of the blocks' matrices (Hu et al. 2021), as pure functions of parameter trees.

A kernel W of a block becomes W + (alpha / rank) · A B, with A (layers, in, rank) and B (layers,
rank, out). The modules are unchanged: a training step merges the frozen kernels with the adapters,
and the gradient reaches the adapters through that sum.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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
HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapters that are trained instead of the transformer's own weights."""

    rank: int = 0  # 0: no adapters, the weights themselves are trained
    alpha: float = 16.0  # the update is scaled by alpha / rank
    # Full names or first parts, such as ('self_attention', 'ffn.up').
    matrices: tuple[str, ...] = MATRICES

    def __post_init__(self):
        check_ranges(self, 'lora.', {'rank': Range(0, 2**13), 'alpha': real(0, 1e6)})
        for name in self.matrices:
            if not any(_names(name, matrix) for matrix in MATRICES):
                raise UserError(
                    f'lora.matrices names {name!r}; wanted some of {", ".join(MATRICES)}'
                )
        if not self.matrices:
            raise UserError(f'lora.matrices is empty; wanted some of {", ".join(MATRICES)}')

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


@functools.partial(jax.jit, static_argnames='config')
def merge(transformer: Any, adapters: Any, config: LoraConfig) -> Any:
    """Adds the adapters to the transformer's kernels; returns all of its parameters."""
    merged, flat = flatten_dict(transformer, sep='.'), flatten_dict(adapters, sep='.')
    for name in config.targets:
        kernel = merged[f'blocks.{name}.kernel']
        update = jnp.einsum('lir,lro->lio', flat[f'{name}.a'], flat[f'{name}.b'], precision=HIGHEST)
        merged[f'blocks.{name}.kernel'] = kernel + config.scale * update
    return unflatten_dict(merged, sep='.')


def joined(frozen: Any, params: Any, config: LoraConfig) -> dict[str, Any]:
    """Joins frozen and trained parameters, by part, and merges adapters into the transformer."""
    if not config.rank:
        return {**frozen, **params}
    others = {name: tree for name, tree in params.items() if name != 'lora'}
    transformer = merge(frozen['transformer'], params['lora'], config)
    return {**frozen, **others, 'transformer': transformer}
