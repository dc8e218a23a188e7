"""Worker processes ignore the signals that are for the main process, and end with it."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys

from helpers.paths import REPOSITORY

from infinity_jax.data.config import DataConfig
from infinity_jax.data.pipeline import training_batches

PARENT = """
import multiprocessing, time
from infinity_jax.runtime.worker_signals import leave_signals_to_parent

def work(ready):
    leave_signals_to_parent(0, 1)
    ready.put(multiprocessing.current_process().pid)
    time.sleep(600)

if __name__ == '__main__':
    context = multiprocessing.get_context('spawn')
    ready = context.SimpleQueue()
    context.Process(target=work, args=(ready,), daemon=True).start()
    print(ready.get(), flush=True)
    time.sleep(600)
"""


def test_workers_go_on_after_a_signal_to_all():
    batches = training_batches(DataConfig(image_size=16, num_workers=1), batch_size=2)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, number)
    for _ in range(12):  # more than was read ahead
        assert len(next(batches).captions) == 2
    batches.close()
    assert not worker.is_alive() and not multiprocessing.active_children()


def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / 'parent.py'
    script.write_text(PARENT)
    path = os.pathsep.join([str(REPOSITORY), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, 'PYTHONPATH': path},
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(parent.stdout.readline())
    descriptor = os.pidfd_open(worker)  # readable once it has ended
    try:
        os.kill(worker, signal.SIGTERM)  # which it ignores
        assert not select.select([descriptor], [], [], 0.2)[0]
        parent.kill()
        parent.communicate(timeout=30)
        assert select.select([descriptor], [], [], 30)[0]
    finally:
        os.close(descriptor)
