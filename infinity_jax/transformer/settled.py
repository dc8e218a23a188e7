"""Keeps a TPU's compiler from joining what it should leave apart."""

import jax

from infinity_jax.sharding import target_platform


def settled(x: jax.Array) -> jax.Array:
    """x, as an array of its own in a program for TPU; elsewhere x as it is.

    The compiler would otherwise make an x that two matrix products read twice, inside of them,
    which takes longer; and products that are equal but for what is joined to them, it compiles
    again.
    """
    return jax.lax.optimization_barrier(x) if target_platform() == 'tpu' else x
