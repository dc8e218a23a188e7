"""Float32 products in blocks of one shape, so that a TPU's compiler has one of them to compile.

At the highest precision a product is a long program: six bfloat16 products, unrolled. Those that
drawing makes once a picture or scale differ in rows and features only, and together took the
compiler longer than a large scale's whole layer; of a chip's time they take less than a hundredth.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from infinity_jax.sharding import target_platform
from infinity_jax.transformer.settled import settled

ROWS = 256
FEATURES = 256  # at most


def pays() -> bool:
    """Whether blocks are worth while: on one TPU chip; several share the rows out instead."""
    return target_platform() == 'tpu' and jax.sharding.get_abstract_mesh().size <= 1


def in_equal_blocks(
    product: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """`product(x, kernel)`, some rows and some features at a time.

    Args:
      product: (rows, inputs) and (inputs, features) to (rows, features).
      x: (…, inputs).
      kernel: (inputs, features).
    """
    inputs, features = kernel.shape
    taken = max(n for n in range(1, FEATURES + 1) if features % n == 0)
    rows = x.reshape(-1, inputs)
    blocks = jnp.pad(rows, ((0, -len(rows) % ROWS), (0, 0))).reshape(-1, ROWS, inputs)

    def of_features(start: jax.Array) -> jax.Array:
        part = settled(jax.lax.dynamic_slice_in_dim(kernel, start, taken, axis=1))
        one = lambda block: settled(product(settled(block), part))
        return jax.lax.map(one, blocks).reshape(-1, taken)[: len(rows)]

    y = jax.lax.map(of_features, jnp.arange(0, features, taken))
    return y.swapaxes(0, 1).reshape(*x.shape[:-1], features)
