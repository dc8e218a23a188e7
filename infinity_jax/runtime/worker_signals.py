"""Signals in data workers: they end with their parent, not with their process group.

A separate module without heavy imports, since workers run it first.
"""

import multiprocessing
import os
import signal
import threading


def obey_parent_alone(worker: int, workers: int) -> None:
    """Ignores SIGTERM and SIGINT, and ends when the main process ends.

    The main process needs batches until it has saved, and then ends its workers itself.

    Args:
      worker, workers: index of the worker and number of workers, as grain passes them; unused.
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
