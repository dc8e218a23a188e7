"""SIGTERM in the middle of a real training: saved, an exit code of its own, resumed exactly.

Schedulers send it to all processes of a group, those that read data too.
"""

import os
import signal
import subprocess
import threading
import time

from helpers.paths import REPOSITORY
from helpers.tiny_run import COMPILE_CACHE, command

from infinity_jax.runtime.preemption import StopNotice
from infinity_jax.training.metrics import read_metrics

STEPS = 150


def train(run_dir, **flags):
    """Starts the tiny training through the real entry point, in a process group of its own."""
    return subprocess.Popen(
        command(**{'run_dir': run_dir, 'steps': STEPS, 'batch_size': 4, **flags}),
        cwd=REPOSITORY,
        env={
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'JAX_NUM_CPU_DEVICES': '1',
            'JAX_COMPILATION_CACHE_DIR': COMPILE_CACHE,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_the_end_of_group(group):
    """Returns once no process of a group is left; those whose parent ended take a moment."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError('a process was left behind')


def losses(run_dir):
    return {record['step']: record['loss'] for record in read_metrics(run_dir)}


def test_sigterm_saves_and_the_same_command_goes_on_bit_for_bit(tmp_path):
    run_dir = tmp_path / 'cut'
    workers = {'data.num_workers': 1}
    process = train(run_dir, **workers)
    while len(losses(run_dir)) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    # Two seconds on a machine of its own; tests share theirs.
    last = process.communicate(timeout=120)[1].strip().splitlines()[-1]
    assert process.returncode == 143
    wait_for_the_end_of_group(process.pid)
    (saved,) = (int(path.name) for path in (run_dir / 'checkpoints').iterdir())
    assert last.startswith(f'stopped by SIGTERM after step {saved}, saved in ')
    assert 3 <= saved == max(losses(run_dir)) < STEPS

    # Workers change nothing about the order; only a saved position wants as many as before.
    again, whole = train(run_dir, **workers), train(tmp_path / 'whole')
    for process in (again, whole):
        stderr = process.communicate(timeout=300)[1]
        assert process.returncode == 0, stderr
    assert losses(run_dir) == losses(tmp_path / 'whole')
    assert sorted(losses(run_dir)) == list(range(1, STEPS + 1))


def test_a_notice_is_kept_until_asked_and_the_handler_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopNotice() as notice:
        assert not notice.stops()
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.stops()
        assert str(notice.stopped(2)).startswith('stopped by SIGTERM after step 2, saved in 0.0 s')
    assert signal.getsignal(signal.SIGTERM) == before


def test_training_outside_the_main_thread_needs_no_handler():
    answers = []

    def ask():
        with StopNotice() as notice:
            answers.append(notice.stops())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]
