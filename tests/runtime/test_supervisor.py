"""A trainer that dies where Python cannot speak still leaves a line and an exit code."""

import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest
from helpers.paths import REPOSITORY

from infinity_jax.runtime import supervisor
from infinity_jax.runtime.supervisor import ending

SEVERAL = {
    'JAX_COORDINATOR_ADDRESS': '127.0.0.1:1',
    'JAX_NUM_PROCESSES': '2',
    'JAX_PROCESS_ID': '0',
}
CODE = """
import os, signal, sys, time
from infinity_jax.runtime.supervisor import supervise
supervise()
print(os.getpid(), os.getppid(), flush=True)
{}
"""


def start(code, environment=SEVERAL):
    """A supervised process that does `code`, and its number and that of its parent."""
    process = subprocess.Popen(
        [sys.executable, '-c', CODE.format(code)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    own, parent = map(int, process.stdout.readline().split())
    return process, own, parent


@pytest.mark.parametrize(
    ('code', 'exit_code', 'message'),
    [
        ('sys.exit(0)', 0, ''),
        ('sys.exit(2)', 2, ''),
        ('os.abort()', 75, 'error: another process of this run died or did not start'),
        ('os.kill(os.getpid(), signal.SIGKILL)', 137, 'error: this process was ended by'),
    ],
)
def test_the_end_of_the_trainer_is_reported(code, exit_code, message):
    process, own, parent = start(code)
    assert own != process.pid == parent
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == exit_code
    assert stderr.startswith(message) and len(stderr.splitlines()) == (1 if message else 0)


def test_a_run_of_one_process_is_not_supervised():
    process, own, _ = start('sys.exit(3)', {'JAX_COORDINATOR_ADDRESS': ''})
    process.communicate(timeout=60)
    assert (own, process.returncode) == (process.pid, 3)


def test_signals_reach_the_trainer():
    wait = 'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\nprint(flush=True)\n'
    process, _, _ = start(wait + 'time.sleep(60)')
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == ''
    assert process.returncode == 143


@pytest.mark.skipif(sys.platform != 'linux', reason='the kernel call is of Linux')
def test_a_killed_supervisor_takes_the_trainer_along():
    process, own, _ = start('time.sleep(60)')
    process.kill()
    process.communicate(timeout=30)
    for _ in range(100):
        if not pathlib.Path(f'/proc/{own}').exists():
            return
        time.sleep(0.1)
    pytest.fail('the trainer lives on')


def test_other_signals_have_the_usual_code():
    assert ending(-signal.SIGSEGV)[1] == 139
    assert 'memory' in ending(-signal.SIGKILL)[0]


def test_nothing_is_supervised_without_process_groups(monkeypatch):
    for name, value in SEVERAL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(supervisor, 'os', types.SimpleNamespace(name='nt', environ=os.environ))
    supervisor.supervise()  # returns
