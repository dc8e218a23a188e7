"""Free memory of the host and of devices, and settings of the allocators of CPUs and GPUs."""

import glob
import os
import pathlib
import sys
from typing import Any

# glibc reads these only at its start. XLA allocates and frees its temporaries in every step; by
# default each goes back to the kernel and returns as new, zeroed, small pages.
TUNABLES = (
    'glibc.malloc.mmap_max=0',  # large buffers come from the heap
    'glibc.malloc.trim_threshold=1000000000000',  # the heap does not shrink when they are freed
    'glibc.malloc.top_pad=67108864',  # it grows by 64 MB
    'glibc.malloc.hugetlb=1',  # in transparent huge pages
    'glibc.malloc.arena_max=1',  # and is one for all threads; heaps of threads end at 64 MB
)
# Device files of GPUs and TPUs; /dev/vfio/vfio is there without a device as well.
ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/accel*', '/dev/vfio/[0-9]*')
GPU_SHARE = 0.9  # of a GPU's memory, which commands let JAX reserve


def restart_with_tuned_allocator() -> None:
    """Restarts this command with `TUNABLES` in its environment; for training on CPUs.

    It avoids the tens of thousands of page faults of a small training step. Call it before all
    else, since it replaces the process. It returns at once if GLIBC_TUNABLES is set, on systems
    other than Linux, and if there is an accelerator, which has its own memory.
    """
    tuned, linux = 'GLIBC_TUNABLES' in os.environ, sys.platform.startswith('linux')
    if tuned or not linux or has_accelerator():
        return
    os.environ['GLIBC_TUNABLES'] = ':'.join(TUNABLES)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def has_accelerator() -> bool:
    """Whether this machine has the device file of a GPU or TPU."""
    return any(glob.glob(pattern) for pattern in ACCELERATORS)


def use_most_of_gpu_memory() -> None:
    """Lets JAX reserve 90 % of a GPU's memory instead of 75, unless the environment says how much.

    Call it before jax starts its backend.
    """
    if not os.environ.keys() & {'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'}:
        os.environ['XLA_CLIENT_MEM_FRACTION'] = str(GPU_SHARE)


def available_bytes(root: str | pathlib.Path = '/') -> int | None:
    """Memory in bytes that this process can still use, within the machine and its control groups.

    Args:
      root: folder that contains /proc and /sys.

    Returns:
      None if the system does not provide the figures.
    """
    root = pathlib.Path(root)
    try:
        lines = (root / 'proc/meminfo').read_text().splitlines()
        groups = (root / 'proc/self/cgroup').read_text().splitlines()
    except OSError:
        return None
    rooms = [int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:')]
    for line in groups:  # number:controllers:path; version 2 names no controllers
        _, controllers, path = line.split(':', 2)
        if controllers in ('', 'memory'):
            rooms += _group_rooms(root / 'sys/fs/cgroup' / controllers, path.strip('/'))
    return min(rooms, default=None)


def free_bytes(device: Any) -> int | None:
    """Free bytes of a `jax.Device`, for the CPU those of the host; None: unknown."""
    if device.platform == 'cpu':
        return available_bytes()
    stats = device.memory_stats() or {}
    if 'bytes_limit' not in stats:
        return None
    return stats['bytes_limit'] - stats.get('bytes_in_use', 0)


def _group_rooms(top: pathlib.Path, path: str) -> list[int]:
    """Bytes left in a control group and in each group above it; evictable file cache is free."""
    rooms = []
    for group in (top / path, *(top / path).parents):
        for limit, usage in (
            ('memory.max', 'memory.current'),
            ('memory.limit_in_bytes', 'memory.usage_in_bytes'),
        ):
            try:
                most, used = (group / limit).read_text(), (group / usage).read_text()
                stat = dict(s.split() for s in (group / 'memory.stat').read_text().splitlines())
            except OSError:
                continue
            cached = int(stat.get('total_inactive_file', stat.get('inactive_file', 0)))
            if most.strip() != 'max':
                rooms.append(int(most) - int(used) + cached)
        if group == top:
            break
    return rooms
