"""The host's memory: how much there is, and keeping what XLA frees in huge pages."""

import glob
import os
import pathlib
import sys

# glibc reads these at its start only. XLA allocates and frees its temporaries in every step; by
# default each goes back to the kernel and returns as fresh, zeroed, small pages.
TUNABLES = (
    'glibc.malloc.mmap_max=0',  # large buffers come from the heap
    'glibc.malloc.trim_threshold=1000000000000',  # which does not shrink when they are freed
    'glibc.malloc.top_pad=67108864',  # and grows by 64 MB
    'glibc.malloc.hugetlb=1',  # in transparent huge pages
)


def restart_with_tuned_allocator() -> None:
    """Starts this very command again with `TUNABLES` in its environment; CPU only.

    Page faults of a small training step, tens of thousands by default, vanish. Call it first
    thing: nothing of the process survives. Returns at once where GLIBC_TUNABLES is set, on other
    systems than Linux, and where there is an accelerator, which has memory of its own.
    """
    accelerators = (
        glob.glob('/dev/nvidia[0-9]*') + glob.glob('/dev/accel*') + glob.glob('/dev/vfio/*')
    )
    if 'GLIBC_TUNABLES' in os.environ or accelerators or not sys.platform.startswith('linux'):
        return
    os.environ['GLIBC_TUNABLES'] = ':'.join(TUNABLES)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def available_bytes(root: str | pathlib.Path = '/') -> int | None:
    """Memory that this process can still have: what the machine and its control groups leave.

    Args:
      root: where /proc and /sys are.

    Returns:
      None where the system does not say.
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


def _group_rooms(top: pathlib.Path, path: str) -> list[int]:
    """What a control group and those above it leave. File cache that can go counts as free."""
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
