"""Who the processes of a run are, on every launcher; and that none outlives another."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest
from helpers.paths import REPOSITORY, TESTS

from infinity_jax.errors import UserError
from infinity_jax.runtime import distributed as processes

EXPLICIT = {
    'JAX_COORDINATOR_ADDRESS': '10.0.0.1:8476',
    'JAX_NUM_PROCESSES': '4',
    'JAX_PROCESS_ID': '3',
}
SLURM = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '16', 'SLURM_STEP_NODELIST': 'gpu[01-02]'}


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """An environment without launchers."""
    for name in list(os.environ):
        if name.startswith(('SLURM_', 'TPU_', 'MEGASCALE_', 'JAX_COORD', 'JAX_NUM_P', 'JAX_PROC')):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ('environment', 'wanted'),
    [
        ({}, None),
        (EXPLICIT, 'environment'),
        ({**EXPLICIT, 'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'}, None),
        (SLURM, 'slurm'),
        ({**SLURM, 'SLURM_NTASKS': '1'}, None),
        ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '16'}, None),  # the batch script itself
        ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b,c,d'}, 'tpu'),
        ({'TPU_PROCESS_ADDRESSES': 'a:8471,b:8471'}, 'tpu'),
        ({'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'}, 'tpu'),
        ({**EXPLICIT, **SLURM}, 'environment'),
    ],
)
def test_the_launcher_is_known_by_its_environment(monkeypatch, environment, wanted):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.launcher() == wanted


@pytest.mark.parametrize(
    ('attributes', 'wanted'),
    [
        ({'worker-network-endpoints': '10.0.0.2', 'tpu-env': "ZONE: 'z'"}, None),
        ({'worker-network-endpoints': 'unknown:0:10.0.0.2,unknown:1:10.0.0.3'}, 'tpu'),
        ({'worker-network-endpoints': 'a', 'tpu-env': "A: '1'\nMEGASCALE_NUM_SLICES: '2'"}, 'tpu'),
        ({}, None),
    ],
)
def test_a_cloud_tpu_machine_asks_its_metadata(monkeypatch, attributes, wanted):
    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rsplit('/', 1)[1])
            known = value is not None and self.headers['Metadata-Flavor'] == 'Google'
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write((value or '').encode())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(('127.0.0.1', 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('GCE_METADATA_IP', f'127.0.0.1:{server.server_port}')
    monkeypatch.setattr(processes, '_on_tpu_vm', lambda: True)
    assert processes.launcher() == wanted
    server.shutdown()


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize is called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, 'initialize', lambda **given: calls.append(given))
    return calls


def test_one_process_joins_nobody(joined):
    processes.join_processes()
    assert joined == []


def test_explicit_numbers_are_passed_on(monkeypatch, joined):
    for name, value in EXPLICIT.items():
        monkeypatch.setenv(name, value)
    processes.join_processes()
    (given,) = joined
    assert given.pop('heartbeat_timeout_seconds') <= 60  # the others end within a minute
    numbers = {n: given[n] for n in ('coordinator_address', 'num_processes', 'process_id')}
    assert tuple(numbers.values()) == ('10.0.0.1:8476', 4, 3)


def test_jax_finds_the_numbers_of_a_cluster(monkeypatch, joined):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    processes.join_processes()
    assert not {'coordinator_address', 'num_processes', 'process_id'} & joined[0].keys()


def test_half_an_address_is_one_line(monkeypatch):
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', '10.0.0.1:8476')
    with pytest.raises(UserError, match='JAX_NUM_PROCESSES or JAX_PROCESS_ID is not a number'):
        processes.launcher()


def test_a_cluster_that_jax_cannot_read_is_one_line(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r'could not join the other processes \(slurm\)'):
        processes.join_processes()  # for want of SLURM_PROCID


def test_the_time_to_start_can_be_longer(monkeypatch, joined):
    for name, value in EXPLICIT.items():
        monkeypatch.setenv(name, value)
    processes.join_processes()
    monkeypatch.setenv('INFINITY_JAX_START_SECONDS', '300')
    processes.join_processes()
    assert [given['initialization_timeout'] for given in joined] == [60, 300]
    for value in ('', '0', 'soon', '-3', '1e9'):
        monkeypatch.setenv('INFINITY_JAX_START_SECONDS', value)
        with pytest.raises(UserError, match='INFINITY_JAX_START_SECONDS is .*wanted the seconds'):
            processes.join_processes()


def start_peers(numbers, count, **environment):
    """Starts those of `count` processes that have the given numbers."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ,
        'PYTHONPATH': str(REPOSITORY),
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': '1',
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': str(count),
        **environment,
    }
    return [
        subprocess.Popen(
            [sys.executable, str(TESTS / 'helpers' / 'peer.py'), '5'],
            cwd=REPOSITORY,
            env={**common, 'JAX_PROCESS_ID': str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in numbers
    ]


def end(started):
    for process in started:
        process.kill()
        process.communicate()


def wait_for(line, process):
    while (read := process.stdout.readline()) != f'{line}\n':
        assert read, process.communicate()[1]


@pytest.fixture
def peers():
    """Two processes in collective steps with each other; ended afterwards."""
    started = start_peers((0, 1), 2)
    for process in started:
        wait_for('running', process)
    yield started
    end(started)


def test_a_peer_that_dies_before_all_have_joined_ends_the_others():
    """The third process never starts. Without the first one, JAX itself would wait for minutes."""
    victim = 0
    started = start_peers((0, 1), 3, INFINITY_JAX_START_SECONDS='4')
    try:
        for process in started:
            wait_for('joining', process)
        time.sleep(1)
        started[victim].kill()
        message = started[1 - victim].communicate(timeout=30)[1].strip().splitlines()[-1]
        assert started[1 - victim].returncode == 75
        assert message.startswith('error: ') and 'start the same command again' in message
    finally:
        end(started)


@pytest.mark.parametrize('victim', [0, 1])
def test_a_dead_peer_ends_the_other_with_a_message(peers, victim):
    other = peers[1 - victim]
    peers[victim].kill()
    messages = other.communicate(timeout=60)[1].strip().splitlines()  # within a minute
    assert other.returncode == 75
    assert messages[-1].startswith('error: ') and 'another process of this run' in messages[-1]
    assert 'start the same command again' in messages[-1]


def test_a_notice_to_one_stops_all_after_the_same_step(peers):
    peers[1].send_signal(signal.SIGTERM)
    messages = [p.communicate(timeout=60)[1].strip().splitlines()[-1] for p in peers]
    assert [p.returncode for p in peers] == [143, 143]
    assert messages[0].startswith('stopped by SIGTERM after step ')
    assert messages[0].split(',')[0] == messages[1].split(',')[0]
