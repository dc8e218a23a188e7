"""Signals in worker processes: they leave SIGTERM to the main process, and end when it dies.

The module has no heavy imports, since it is the first code that a worker process runs.
"""

import multiprocessing
import os
import signal
import threading


def leave_signals_to_parent(worker: int, workers: int) -> None:
    """Ignores SIGTERM and SIGINT, so that the main process gets batches until it has saved.

    The main process ends its workers when it is done. If it is killed, they end too.

    Args:
      worker, workers: number of this worker and of all, which grain passes; not used.
    """
    del worker, workers
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: multiprocessing.Process) -> None:
    parent.join()
    os._exit(1)
