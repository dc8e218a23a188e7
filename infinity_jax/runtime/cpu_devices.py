"""One CPU device per core, for training small models on CPUs.

A small model's products are too short for several threads, which wait for each other: the second
core of two is mostly idle. With a device per core, each core processes images of its own. Large
models lose by it, since every device has a copy of the weights and updates it.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from infinity_jax.runtime.distributed import launcher

VARIABLE = 'JAX_NUM_CPU_DEVICES'  # JAX's environment variable; set, it is used as it is
XLA_FLAG = 'xla_force_host_platform_device_count'  # the older way to choose the number
MIN_IMAGES = 4  # that a device processes at once; with fewer, the sum of gradients takes longer


def use_cores(images: int) -> None:
    """Makes the CPU as many devices as it has cores that can share a batch evenly.

    The number stays in one of several processes, and where the user has set `VARIABLE` or
    `XLA_FLAG`; accelerators are not affected. If this process has used a device before, the number
    stays too, and one line says so.

    Args:
      images: that are processed at once, over all devices.
    """
    chosen = VARIABLE in os.environ or XLA_FLAG in os.environ.get('XLA_FLAGS', '')
    if chosen or launcher() is not None:
        return
    wanted = devices_for(images, cores())
    try:
        jax.config.update('jax_num_cpu_devices', wanted)
    except RuntimeError:  # JAX refuses another number once it has devices
        found = jax.local_device_count()
        if jax.default_backend() == 'cpu' and found != wanted:
            print(
                f'{found} CPU devices where {wanted} would be faster: this process has used JAX '
                f'before; set {VARIABLE}={wanted} before it starts',
                file=sys.stderr,
            )


def one_at_a_time(mesh: Mesh, program: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a compiled program whose calls may not depend on each other's results.

    On several CPU devices a call returns once the results are there. These devices share the
    threads of one pool: if two programs with collectives ran at the same time, such as the batches
    of an evaluation, both could wait in all threads for a device that has none left, and XLA ends
    the process after a minute. Other devices keep the programs in a queue.
    """
    if mesh.devices.size == 1 or mesh.devices.flat[0].platform != 'cpu':
        return program

    def call(*args, **options):
        return jax.block_until_ready(program(*args, **options))

    return call


def devices_for(images: int, most: int) -> int:
    """The largest number up to `most` that gives all devices `MIN_IMAGES` or more, equally many."""
    numbers = range(2, min(most, images // MIN_IMAGES) + 1)
    return max((n for n in numbers if images % n == 0), default=1)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
