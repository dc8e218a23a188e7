"""The dense layer of the transformer, whose kernel may come in 8 bits."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from infinity_jax.config import TransformerConfig
from infinity_jax.transformer.int8 import SCALE
from infinity_jax.transformer.tpu import pays, tiled

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
    def __call__(
        self, x: jax.Array, *, contract: int = 1, parts: int = 1, in_blocks: bool = False
    ) -> Any:
        """The product; of several, each with its own share of the features, a list.

        Args:
          x: (…, features in), or these cut over its last `contract` axes.
          parts: products instead of one.
          in_blocks: take equal blocks where that pays; for a program that makes no gradient.
        """
        init = nn.initializers.normal(self.std) if self.std else nn.initializers.zeros
        shape = (math.prod(x.shape[-contract:]), self.features)
        kernel = self.param('kernel', nn.with_logical_partitioning(init, self.axes), shape)
        scaled = self.has_variable('params', SCALE)
        added = [self.get_variable('params', SCALE)] if scaled else []
        if self.use_bias:
            added.append(self.param('bias', VECTOR(nn.initializers.zeros), (self.features,)))
        if parts == 1:
            return self._product(x, contract, kernel, *added, in_blocks=in_blocks and pays())
        cut = (jnp.split(array, parts, axis=-1) for array in (kernel, *added))
        return [self._product(x, contract, *arrays) for arrays in zip(*cut, strict=True)]

    def _product(self, x, contract, kernel, *added, in_blocks=False):
        scaled = self.has_variable('params', SCALE)
        kernel = kernel.reshape(*x.shape[-contract:], -1).astype(self.dtype)
        kind = jnp.float32 if scaled else None
        product = functools.partial(_contract, axes=contract, preferred_element_type=kind)
        x = x.astype(self.dtype)
        y = tiled(product, x, kernel) if in_blocks else product(x, kernel)
        added = [jnp.expand_dims(array, range(y.ndim - 1)) for array in added]
        if scaled:
            y = (y * added[0]).astype(self.dtype)
        return y + added[-1].astype(self.dtype) if self.use_bias else y


def _contract(x: jax.Array, kernel: jax.Array, *, axes: int, **options: Any) -> jax.Array:
    """Sums over the last `axes` of x and the first of the kernel."""
    last, first = range(x.ndim - axes, x.ndim), range(axes)
    precision = HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        x, kernel, ((tuple(last), tuple(first)), ((), ())), precision=precision, **options
    )


def linear(features: int, axes: tuple[str | None, ...], std: float, dtype: Any, **options: Any):
    """A `Linear` whose kernel starts normal with that deviation."""
    return Linear(features, axes, std, dtype, **options)


EPSILON = 1e-6
STATISTICS = 'statistics'  # name of means and deviations, which a policy may keep: a number a token


@jax.custom_vjp
def layer_norm(x_BLD: jax.Array) -> jax.Array:
    """(x − mean) / √(variance + ε) over the width, without parameters, in float32."""
    return _forward(x_BLD)[0]


def _forward(x_BLD: jax.Array):
    x = x_BLD.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + EPSILON)
    mean, rate = checkpoint_name((mean, rate), STATISTICS)
    return (x - mean) * rate, (x_BLD, mean, rate)


def _backward(kept, g_BLD: jax.Array):
    x_BLD, mean, rate = kept
    normal = (x_BLD.astype(jnp.float32) - mean) * rate
    along = (g_BLD * normal).mean(-1, keepdims=True)
    dx_BLD = rate * (g_BLD - g_BLD.mean(-1, keepdims=True) - normal * along)
    return (dx_BLD.astype(x_BLD.dtype),)


layer_norm.defvjp(_forward, _backward)


def sample_kept(key: jax.Array, config: TransformerConfig, batch: int) -> jax.Array | None:
    """Factors of the updates, float32 (B, layers, 2): 0 or 1/(1 − rate); None at rate 0.

    The rate grows linearly over the layers, from 0 to `config.drop_path`.
    """
    if not config.drop_path:
        return None
    rates = np.linspace(0, config.drop_path, config.depth, dtype=np.float32)[None, :, None]
    kept = jax.random.bernoulli(key, 1 - rates, (batch, config.depth, 2))
    return kept / (1 - rates)
