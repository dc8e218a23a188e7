"""The memory that the state of a run takes, compared with the free memory before it is made."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from infinity_jax.errors import UserError
from infinity_jax.runtime.host_memory import free_bytes

GB = 10**9


def check_memory(abstract_state: Any, mesh: Mesh) -> None:
    """Refuses a run whose state alone exceeds the free memory; a step needs more than its state.

    Args:
      abstract_state: tree of ShapeDtypeStructs with shardings.
      mesh: the devices of the run.

    Raises:
      UserError: it does.
    """
    devices = mesh.local_devices
    share = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract_state)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
    on_host = devices[0].platform == 'cpu'  # all CPU devices share its memory
    needed, free = share * (len(devices) if on_host else 1), free_bytes(devices[0])
    if free is not None and needed > free:
        raise UserError(
            f'weights, optimizer and average take {needed / GB:.3g} GB of memory '
            f'{"here" if on_host else "per device"}, of which {free / GB:.3g} GB are free; lower '
            'the sizes of the model, or split them over more devices with config.mesh.fsdp'
        )
