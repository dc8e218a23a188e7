"""The layers that transformer blocks are made of: `Linear`, `layer_norm` and stochastic depth.

`Linear` accepts kernels in 8 bits and can compute in tiles (`tpu.tiled_product`). The gradient of
`layer_norm` is written out, so that one pass computes all the sums it needs. `sample_kept` samples
which updates stochastic depth leaves out, per image.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from infinity_jax.config import TransformerConfig
from infinity_jax.transformer.int8 import SCALE
from infinity_jax.transformer.lora import LORA_A, LORA_B
from infinity_jax.transformer.tpu import tiled_product, uses_tiles

HIGHEST = jax.lax.Precision.HIGHEST
# Wraps an initializer of one value per channel. One such vector is small, all layers' are not.
VECTOR: Callable[..., Callable[..., Any]] = functools.partial(
    nn.with_logical_partitioning, names=('vector',)
)
# Wraps an initializer of several axes, whose logical names are its second argument.
MATRIX: Callable[..., Callable[..., Any]] = nn.with_logical_partitioning
LAYER_NORM_EPSILON = 1e-6
STATISTICS = 'statistics'  # checkpoint name of means and inverse deviations: two numbers per token


def linear(
    features: int, axes: tuple[str | None, ...], std: float, dtype: Any, **options: Any
) -> 'Linear':
    """A `Linear` whose kernel is initialised from a normal distribution with deviation `std`."""
    return Linear(features, axes, std, dtype, **options)


class Linear(nn.Module):
    """x · kernel + bias in `dtype`; float32 means the highest product precision.

    A kernel in 8 bits comes with one scale per output channel in the parameter tree. Its product is
    of the integers themselves, exact in 16 bits, and the scale is applied to the float32 sum. A
    low-rank update in the tree, see `lora.attach`, adds (x A) B.

    Attributes:
      features: output channels.
      axes: logical axes of the kernel (in, out).
      std: standard deviation of the initial kernel; 0: zeros.
      dtype: of the product.
      use_bias: whether a bias is added.
    """

    features: int
    axes: tuple[str | None, ...]
    std: float
    dtype: Any
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, *, contract: int = 1, parts: int = 1, tiled: bool = False
    ) -> Any:
        """Returns the product, or with several `parts` a list of products.

        Args:
          x: (…, features in); the input features may be split over the last `contract` axes.
          contract: axes of x that are summed over.
          parts: products that share the output features evenly.
          tiled: computes in tiles where `tpu.uses_tiles`; for programs without a gradient.
        """
        init = nn.initializers.normal(self.std) if self.std else nn.initializers.zeros
        shape = (math.prod(x.shape[-contract:]), self.features)
        kernel: jax.Array = self.param('kernel', MATRIX(init, self.axes), shape)
        vectors = [self.get_variable('params', SCALE)] if self._is_int8() else []
        if self.use_bias:
            vectors.append(self.param('bias', VECTOR(nn.initializers.zeros), (self.features,)))
        updates = self._update(x, contract, parts)
        if parts == 1:
            y = self._product(x, contract, kernel, *vectors, tiled=tiled and uses_tiles())
            return y if updates is None else y + updates[0]
        split = (jnp.split(array, parts, axis=-1) for array in (kernel, *vectors))
        products = [self._product(x, contract, *arrays) for arrays in zip(*split, strict=True)]
        if updates is not None:
            products = [y + update for y, update in zip(products, updates, strict=True)]
        return products

    def _update(self, x: jax.Array, contract: int, parts: int) -> list[jax.Array] | None:
        """(x A) B, in parts of its features; None without an update."""
        if not self.has_variable('params', LORA_A):
            return None
        a: jax.Array = self.get_variable('params', LORA_A).astype(self.dtype)
        b: jax.Array = self.get_variable('params', LORA_B).astype(self.dtype)
        a = a.reshape(*x.shape[-contract:], -1)
        narrow = _contract(x.astype(self.dtype), a, axes=contract)
        return [_contract(narrow, part, axes=1) for part in jnp.split(b, parts, axis=-1)]

    def _is_int8(self) -> bool:
        return self.has_variable('params', SCALE)

    def _product(self, x, contract, kernel, *vectors, tiled=False):
        """The product with a part of the kernel; `vectors` are its int8 scale and its bias."""
        kernel = kernel.reshape(*x.shape[-contract:], -1)
        x = x.astype(self.dtype)
        if self._is_int8():
            y = int8_product(contract, x, kernel, vectors[0])
        else:
            product = functools.partial(_contract, axes=contract)
            kernel = kernel.astype(self.dtype)
            y = tiled_product(product, x, kernel) if tiled else product(x, kernel)
        return y + _row(vectors[-1], y).astype(self.dtype) if self.use_bias else y


def _row(vector: jax.Array, y: jax.Array) -> jax.Array:
    """A value per feature in the shape that broadcasts with y (…, features)."""
    return jnp.expand_dims(vector, range(y.ndim - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def int8_product(axes: int, x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """x · (kernel · scale) in the dtype of x, summed in float32.

    The gradient is that of x, from a product in its dtype; kernel and scale are constants.

    Args:
      axes: last axes of x that are summed over.
      x: (…, features in).
      kernel: int8 (features in, features out), the first axis split as that of x.
      scale: float32 (features out,).
    """
    as_floats = kernel.astype(x.dtype)
    sums = _contract(x, as_floats, axes=axes, preferred_element_type=jnp.float32)
    return (sums * _row(scale, sums)).astype(x.dtype)


def _int8_forward(axes, x, kernel, scale):
    return int8_product(axes, x, kernel, scale), (kernel, scale)


def _int8_backward(axes, constants, g):
    kernel, scale = constants
    g = (g * _row(scale, g)).astype(g.dtype)
    features = (g.ndim - 1,), (kernel.ndim - 1,)
    precision = HIGHEST if g.dtype == jnp.float32 else None
    dx = jax.lax.dot_general(g, kernel.astype(g.dtype), (features, ((), ())), precision=precision)
    return dx, np.zeros(kernel.shape, jax.dtypes.float0), jnp.zeros_like(scale)


int8_product.defvjp(_int8_forward, _int8_backward)


def _contract(x: jax.Array, kernel: jax.Array, *, axes: int, **options: Any) -> jax.Array:
    """Sums over the last `axes` axes of x and the first ones of the kernel."""
    last, first = range(x.ndim - axes, x.ndim), range(axes)
    precision = HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        x, kernel, ((tuple(last), tuple(first)), ((), ())), precision=precision, **options
    )


@jax.custom_vjp
def layer_norm(x_BLD: jax.Array) -> jax.Array:
    """(x − mean) / √(variance + ε) over the width, without parameters, in float32."""
    return _layer_norm_forward(x_BLD)[0]


def _layer_norm_forward(x_BLD: jax.Array):
    x = x_BLD.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
    mean, inverse = checkpoint_name((mean, inverse), STATISTICS)
    return (x - mean) * inverse, (x_BLD, mean, inverse)


def _layer_norm_backward(residuals, g_BLD: jax.Array):
    x_BLD, mean, inverse = residuals
    normalised = (x_BLD.astype(jnp.float32) - mean) * inverse
    along = (g_BLD * normalised).mean(-1, keepdims=True)
    dx_BLD = inverse * (g_BLD - g_BLD.mean(-1, keepdims=True) - normalised * along)
    return (dx_BLD.astype(x_BLD.dtype),)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def sample_kept(key: jax.Array, config: TransformerConfig, batch: int) -> jax.Array | None:
    """Samples the factors of stochastic depth, which leaves out updates at random, per image.

    The rate grows linearly over the layers, from 0 to `config.drop_path`.

    Returns:
      Factors of the updates by self-attention and FFN, float32 (B, layers, 2): 0 or 1/(1 − rate).
      None at rate 0.
    """
    if not config.drop_path:
        return None
    rates = np.linspace(0, config.drop_path, config.depth, dtype=np.float32)[None, :, None]
    kept = jax.random.bernoulli(key, 1 - rates, (batch, config.depth, 2))
    return kept / (1 - rates)
