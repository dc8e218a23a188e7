"""Symmetric 8-bit quantization with float32 scales.

Kernels of the blocks have one scale per output channel. Cached keys and values have one scale per
token and head.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

LEVELS = 127  # on either side of 0
SCALE = 'kernel_scale'  # next to an int8 kernel in the parameter tree


class Int8(NamedTuple):
    """The numbers values · scale.

    Attributes:
      values: int8.
      scale: float32, of the same shape without the last axis, whose numbers share a scale.
    """

    values: jax.Array
    scale: jax.Array

    @classmethod
    def of(cls, x: jax.Array) -> 'Int8':
        """Rounds `x` with one scale per row along its last axis."""
        scale = jnp.abs(x.astype(jnp.float32)).max(-1) / LEVELS
        steps = x / jnp.where(scale == 0, 1, scale)[..., None]
        return cls(jnp.round(steps).astype(jnp.int8), scale)

    def as_dtype(self, dtype: Any) -> jax.Array:
        return (self.values * self.scale[..., None]).astype(dtype)


def is_int8_kernel(path: tuple[str, ...]) -> bool:
    """Whether int8 weights hold this parameter in 8 bits: the kernels of the stacked blocks."""
    return path[0] == 'blocks' and path[-1] == 'kernel'


def scale_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """Path of the scales of a kernel in the parameter tree."""
    return (*path[:-1], SCALE)


def quantize_kernels(params: dict[str, Any]) -> dict[str, Any]:
    """Quantizes the kernels (layers, in, out) of a transformer's blocks to 8 bits.

    It works layer by layer on the host, so that no float32 copy of a whole kernel is made.
    """
    flat = flatten_dict(params)
    result = {}
    for path in tuple(flat):
        leaf = flat.pop(path)
        if not is_int8_kernel(path):
            result[path] = leaf
            continue
        values = np.empty(leaf.shape, np.int8)
        scales = np.empty((leaf.shape[0], leaf.shape[2]), np.float32)
        for layer, kernel in enumerate(leaf):
            kernel = np.asarray(kernel, np.float32)
            scales[layer] = np.abs(kernel).max(0) / LEVELS
            divisor = np.where(scales[layer] == 0, 1, scales[layer])
            values[layer] = np.round(kernel / divisor[None])
        result[path], result[scale_path(path)] = values, scales
    return unflatten_dict(result)


def quantize_on_devices(params: dict[str, Any]) -> dict[str, Any]:
    """`quantize_kernels` of jax arrays, each with the sharding that it has."""
    flat = flatten_dict(params)
    del params  # a kernel without another owner is freed once its 8-bit form exists
    result = {}
    for path in tuple(flat):
        leaf = flat.pop(path)
        if is_int8_kernel(path):
            shardings = leaf.sharding, scale_sharding(leaf.sharding)
            leaf, result[scale_path(path)] = jax.jit(_quantize, out_shardings=shardings)(leaf)
        result[path] = leaf
    return unflatten_dict(result)


def _quantize(kernel_LIO: jax.Array) -> tuple[jax.Array, jax.Array]:
    kernel = kernel_LIO.astype(jnp.float32)
    scale = jnp.abs(kernel).max(1) / LEVELS
    steps = kernel / jnp.where(scale == 0, 1, scale)[:, None]
    return jnp.round(steps).astype(jnp.int8), scale


def scale_sharding(kernel: NamedSharding) -> NamedSharding:
    """Sharding of the scales (layers, out) of a kernel (layers, in, out)."""
    spec = (*kernel.spec, None, None, None)
    return NamedSharding(kernel.mesh, PartitionSpec(spec[0], spec[2]))


def int8_shardings(shardings: dict[str, Any]) -> dict[str, Any]:
    """Shardings of `quantize_on_devices` for parameters with these shardings."""
    result = flatten_dict(shardings)
    for path, kernel in tuple(result.items()):
        if is_int8_kernel(path):
            result[scale_path(path)] = scale_sharding(kernel)
    return unflatten_dict(result)


def int8_shapes(shapes: dict[str, Any]) -> dict[str, Any]:
    """Shapes of `quantize_kernels` for parameters of these shapes."""
    result = {}
    for path, leaf in flatten_dict(shapes).items():
        result[path] = leaf
        if is_int8_kernel(path):
            layers, _, features = leaf.shape
            result[path] = jax.ShapeDtypeStruct(leaf.shape, jnp.int8)
            result[scale_path(path)] = jax.ShapeDtypeStruct((layers, features), jnp.float32)
    return unflatten_dict(result)
