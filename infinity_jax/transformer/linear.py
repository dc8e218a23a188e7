"""The dense layer of the transformer, whose kernel may come in 8 bits."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from infinity_jax.transformer.int8 import SCALE

HIGHEST = jax.lax.Precision.HIGHEST
# An initializer of one value a channel: small, but not once all layers are stacked.
VECTOR = functools.partial(nn.with_logical_partitioning, names=('vector',))


class Linear(nn.Module):
    """x · kernel + bias in `dtype`; float32 means the highest product precision.

    A kernel in 8 bits has a scale for each output channel beside it in the tree. The product then
    is of the integers themselves, exact in 16 bits, and the scale is applied to its float32 sum.
    """

    features: int
    axes: tuple[str | None, ...]
    std: float
    dtype: Any
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.std) if self.std else nn.initializers.zeros
        kernel = self.param(
            'kernel', nn.with_logical_partitioning(init, self.axes), (x.shape[-1], self.features)
        )
        scaled = self.has_variable('params', SCALE)
        y = jax.lax.dot_general(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (((x.ndim - 1,), (0,)), ((), ())),
            precision=HIGHEST if self.dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32 if scaled else None,
        )
        if scaled:
            scale = self.get_variable('params', SCALE)
            y = (y * jnp.expand_dims(scale, range(y.ndim - 1))).astype(self.dtype)
        if self.use_bias:
            bias = self.param('bias', VECTOR(nn.initializers.zeros), (self.features,))
            y = y + jnp.expand_dims(bias.astype(self.dtype), range(y.ndim - 1))
        return y


def linear(features: int, axes: tuple[str | None, ...], std: float, dtype: Any, **options: Any):
    """A `Linear` whose kernel starts normal with that deviation."""
    return Linear(features, axes, std, dtype, **options)
