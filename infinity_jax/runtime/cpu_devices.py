"""One CPU device per core, for training small models on CPUs.

A small model's products are too short for several threads: XLA's threads wait for each other, and
the second core of two is mostly idle. With a device per core, each core processes its own images.
"""

import os

import jax

from infinity_jax.runtime.distributed import launcher

VARIABLE = 'JAX_NUM_CPU_DEVICES'  # JAX's environment variable; set, it is used as it is
XLA_FLAG = 'xla_force_host_platform_device_count'  # the older way to choose the number
MIN_IMAGES = 4  # that a device processes at once; with fewer, all devices share the products' sums


def use_cores(images: int) -> None:
    """Makes the CPU as many devices as it has cores that can share a batch evenly.

    It has to be called before anything uses a device. It does nothing in one of several processes
    and where the user has set `VARIABLE` or `XLA_FLAG`; accelerators are not affected.

    Args:
      images: that are processed at once, over all devices.
    """
    chosen = VARIABLE in os.environ or XLA_FLAG in os.environ.get('XLA_FLAGS', '')
    if not chosen and launcher() is None:
        jax.config.update('jax_num_cpu_devices', devices_for(images, cores()))


def devices_for(images: int, most: int) -> int:
    """The largest number up to `most` that divides `images` into shares of `MIN_IMAGES` or more."""
    return max(n for n in range(1, most + 1) if n == 1 or images % n == 0 and images // n >= MIN_IMAGES)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
