"""Freed memory stays with the process, which starts again for it."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from infinity_jax.host_memory import restart_with_tuned_allocator
if {keep}:
    restart_with_tuned_allocator()
import resource
import numpy as np
np.ones(4_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(4_000_000)  # 32 MB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, *sys.argv[1:])
"""


def run(keep, environment):
    command = [sys.executable, '-c', CODE.format(keep=keep), 'an argument']
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    faults, arguments = done.stdout.strip().split(' ', 1)
    assert arguments == 'an argument'
    return int(faults)


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc only')
def test_large_buffers_are_used_again():
    plain = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
    assert run(True, plain) < 0.2 * run(False, plain)


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc only')
def test_the_user_s_own_settings_stay():
    own = {**os.environ, 'GLIBC_TUNABLES': 'glibc.malloc.check=0'}
    assert run(True, own) > 0
