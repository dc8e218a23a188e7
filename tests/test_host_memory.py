"""Freed memory stays with the process. Each case has one of its own: it cannot be undone."""

import subprocess
import sys

import pytest

CODE = """
import resource
import numpy as np
from infinity_jax.host_memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
np.ones(4_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(4_000_000)  # 32 MB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep):
    command = [sys.executable, '-c', CODE.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc only')
def test_large_buffers_are_used_again():
    assert page_faults(True) < 0.2 * page_faults(False)
