"""Means over a batch from parts of it, one after the other, for batches that do not fit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from infinity_jax.errors import UserError
from infinity_jax.sharding import constrain


def check_parts(batch_size: int, count: int, mesh: Mesh) -> None:
    """Raises `UserError` unless every part of a batch splits evenly over data and fsdp."""
    shares = mesh.shape['data'] * mesh.shape['fsdp']
    if count < 1 or batch_size % (count * shares):
        raise UserError(
            f'accumulate_steps is {count}: batch_size {batch_size} does not divide over that many '
            f'parts x {shares} shares of data x fsdp; change one of them'
        )


def batch_parts(batch: Any, count: int) -> Any:
    """Every array (B, …) as (count, B/count, …), still split over data and fsdp.

    Part i has every count-th row from row i on: so each device keeps its own rows, and nothing is
    sent.
    """

    def cut(x: jax.Array) -> jax.Array:
        parts = x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, 'batch', *(None,) * (x.ndim - 1))

    return jax.tree.map(cut, batch)


def mean_of_parts(of_rows: Callable[[Any], Any], rows: Any, count: int) -> Any:
    """`of_rows(rows)`, whose results are means over rows, with the memory of one part of them.

    Args:
      of_rows: rows -> tree of arrays, means over the rows: losses, gradients.
      rows: tree of arrays (B, …), the same rows in all.
      count: parts.

    Returns:
      what `of_rows` gives, averaged in float32.
    """
    if count == 1:
        return of_rows(rows)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        result = of_rows(part)
        return jax.tree.map(lambda t, x: t + x.astype(jnp.float32) / count, total, result), None

    parts = batch_parts(rows, count)
    shapes = jax.eval_shape(of_rows, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(add, zeros, parts)[0]
