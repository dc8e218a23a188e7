"""Lets the C library keep the memory that XLA frees, in huge pages."""

import glob
import os
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
