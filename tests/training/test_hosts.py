"""Two processes through the real entry point: a single one's losses, and back to a single one."""

import os
import socket
import subprocess

import pytest
from helpers.data_folders import encoded
from helpers.paths import REPOSITORY
from helpers.tiny_run import COMPILE_CACHE, command

from infinity_jax.training.metrics import read_metrics


def start(fields, *, hosts, devices, of_host=lambda host: {}):
    """Starts the processes of a run and waits for them; returns exit codes and outputs.

    `devices` is of each host, `of_host` gives the fields in which one differs.
    """
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    several = {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': str(hosts)}
    common = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': str(devices),
        # Several processes on CPUs make no use of the cache.
        **(several if hosts > 1 else {'JAX_COMPILATION_CACHE_DIR': COMPILE_CACHE}),
    }
    started = [
        subprocess.Popen(
            # The number of steps changes nothing at a constant rate.
            command(**{**fields, **of_host(host), 'optimizer.decay': 'constant'}),
            cwd=REPOSITORY,
            env={**common, 'JAX_PROCESS_ID': str(host)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(hosts)
    ]
    outputs = [process.communicate(timeout=900) for process in started]
    return [process.returncode for process in started], [out + error for out, error in outputs]


def train(run_dir, steps, *, hosts, devices, **mesh):
    """Trains to the end; `devices` is of each host, `mesh` the axes' sizes."""
    axes = {f'mesh.{axis}': size for axis, size in mesh.items()}
    fields = {'run_dir': run_dir, 'steps': steps, 'batch_size': 8, **axes}
    codes, outputs = start(fields, hosts=hosts, devices=devices)
    assert codes == [0] * hosts, outputs
    return outputs


def test_two_hosts_train_as_one_and_a_single_one_goes_on(tmp_path):
    train(tmp_path / 'alone', 6, hosts=1, devices=2)
    wanted = {r['step']: r['loss'] for r in read_metrics(tmp_path / 'alone')}
    # Parameters and checkpoint are split over both, and then lie on one mesh of copies.
    first, second = train(tmp_path / 'run', 3, hosts=2, devices=2, data=1, fsdp=4)
    assert 'starting from random weights' in first and 'starting from' not in second
    assert 'held out' in first and 'held out' not in second  # one process writes the log
    (again,) = train(tmp_path / 'run', 6, hosts=1, devices=2)
    assert 'resuming from' in again and 'checkpoints/3' in again
    found = {r['step']: r['loss'] for r in read_metrics(tmp_path / 'run')}
    assert found == {step: pytest.approx(loss, rel=1e-5) for step, loss in wanted.items()}


def test_hosts_with_different_data_are_refused_with_the_difference(tmp_path):
    for host, count in enumerate((40, 39)):
        (tmp_path / f'{host}').mkdir()
        for i in range(count):
            (tmp_path / f'{host}' / f'{i:02}.png').write_bytes(encoded(16, 16, i, 'PNG'))
    own = lambda host: {'data.sources': f"({{'kind':'folder','path':'{tmp_path / str(host)}'}},)"}
    fields = {'run_dir': tmp_path / 'run', 'steps': 1, 'batch_size': 8, 'data.held_out_share': 0.2}
    codes, outputs = start(fields, hosts=2, devices=1, of_host=own)
    assert codes == [2, 2]
    for output in outputs:
        (line,) = [line for line in output.splitlines() if line.startswith('error: ')]
        assert 'host 0 has 40 files, 40 records' in line and 'host 1 has 39 files' in line
