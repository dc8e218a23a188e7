"""Freed memory stays with the process, which starts again for it; free memory is known."""

import fnmatch
import os
import subprocess
import sys

import pytest

from infinity_jax.runtime import host_memory
from infinity_jax.runtime.host_memory import available_bytes, use_most_of_gpu_memory

CODE = """
import sys
from infinity_jax.runtime.host_memory import restart_with_tuned_allocator
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
@pytest.mark.skipif(host_memory.has_accelerator(), reason='for training on CPUs')
def test_large_buffers_are_used_again():
    plain = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
    assert run(True, plain) < 0.2 * run(False, plain)


def test_the_user_s_own_settings_stay(monkeypatch):
    own = {'GLIBC_TUNABLES': 'glibc.malloc.check=0'}
    monkeypatch.setattr(host_memory.os, 'environ', dict(own))
    monkeypatch.setattr(host_memory.sys, 'platform', 'linux')
    monkeypatch.setattr(host_memory, 'has_accelerator', lambda: False)
    monkeypatch.setattr(host_memory.os, 'execv', lambda *args: pytest.fail('restarted'))
    host_memory.restart_with_tuned_allocator()
    assert os.environ == own


@pytest.mark.parametrize(
    ('device', 'restarts'),
    [
        ('/dev/nvidia0', False),
        ('/dev/accel0', False),
        ('/dev/vfio/0', False),
        ('/dev/vfio/vfio', True),
    ],
)
def test_only_machines_without_an_accelerator_are_tuned(device, restarts, monkeypatch):
    restarted = []
    monkeypatch.setattr(host_memory.os, 'environ', {})
    monkeypatch.setattr(host_memory.sys, 'platform', 'linux')
    monkeypatch.setattr(host_memory.glob, 'glob', lambda pattern: fnmatch.filter([device], pattern))
    monkeypatch.setattr(host_memory.os, 'execv', lambda *args: restarted.append(args))
    host_memory.restart_with_tuned_allocator()
    assert bool(restarted) == bool(os.environ) == restarts


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MACHINE = {'proc/meminfo': 'MemTotal: 9 kB\nMemAvailable:   8000 kB\n'}
VERSION_2 = {
    'proc/self/cgroup': '0::/a/b\n',
    'sys/fs/cgroup/a/b/memory.max': 'max\n',
    'sys/fs/cgroup/a/b/memory.current': '100\n',
    'sys/fs/cgroup/a/b/memory.stat': 'anon 5\ninactive_file 7\n',
    'sys/fs/cgroup/a/memory.max': '5000000\n',
    'sys/fs/cgroup/a/memory.current': '3000000\n',
    'sys/fs/cgroup/a/memory.stat': 'inactive_file 500000\n',
}
VERSION_1 = {
    'proc/self/cgroup': '8:pids:/\n4:memory:/x\n',
    'sys/fs/cgroup/memory/x/memory.limit_in_bytes': '1000\n',
    'sys/fs/cgroup/memory/x/memory.usage_in_bytes': '400\n',
    'sys/fs/cgroup/memory/x/memory.stat': 'inactive_file 1\ntotal_inactive_file 50\n',
}


@pytest.mark.parametrize(
    ('files', 'free'),
    [
        ({**MACHINE, 'proc/self/cgroup': '0::/\n'}, 8000 * 1024),
        ({**MACHINE, **VERSION_2}, 2_500_000),  # a group above has the limit
        ({**MACHINE, **VERSION_1}, 650),
        ({}, None),
    ],
    ids=['machine', 'version 2', 'version 1', 'unknown'],
)
def test_free_memory_is_what_machine_and_groups_leave(tmp_path, files, free):
    write(tmp_path, files)
    assert available_bytes(tmp_path) == free


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_this_machine_has_memory():
    assert 10**8 < available_bytes() < 10**14


def test_a_share_of_gpu_memory_is_set_unless_there_is_one(monkeypatch):
    names = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')
    for given in (None, *names):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        if given:
            monkeypatch.setenv(given, '0.5')
        use_most_of_gpu_memory()
        assert [os.environ.get(name) for name in names if name in os.environ] == [
            '0.5' if given else '0.9'
        ]
