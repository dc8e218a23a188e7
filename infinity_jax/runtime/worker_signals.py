"""What worker processes do when their whole process group is told to stop, or their parent dies.

A module of its own, without heavy imports: workers run it first.
"""

import multiprocessing
import os
import signal
import threading


def obey_parent_alone(worker: int, workers: int) -> None:
    """Leaves SIGTERM and SIGINT to the main process, which wants batches until it has saved.

    It ends its workers by itself when it is done. Should it be killed, they end too.

    Args:
      worker: which one this is, and
      workers: of how many, as grain passes them.
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
