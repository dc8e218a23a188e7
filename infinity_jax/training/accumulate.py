"""Gradient accumulation: means over a batch, computed part by part to save memory."""

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
    """Splits every array (B, …) into (count, B/count, …), still sharded over data and fsdp.

    Part i takes every count-th row from row i on, so that each device keeps its own rows and sends
    nothing.
    """

    def cut(x: jax.Array) -> jax.Array:
        parts = x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, 'batch', *(None,) * (x.ndim - 1))

    return jax.tree.map(cut, batch)


def mean_of_parts(of_rows: Callable[[Any], Any], rows: Any, count: int) -> Any:
    """Computes `of_rows(rows)`, whose results are means over rows, with the memory of one part.

    Args:
      of_rows: rows -> tree of arrays, means over the rows: losses, gradients.
      rows: tree of arrays (B, …), all of the same B.
      count: number of parts.

    Returns:
      the results of `of_rows`, averaged over the parts in float32.
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
