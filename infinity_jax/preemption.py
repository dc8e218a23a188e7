"""A notice that the machine will be taken away: SIGTERM, on any one of a run's processes."""

import signal
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was asked to stop and has saved; the message says so."""


class StopNotice:
    """Listens for SIGTERM while it is entered, as a context manager.

    One process listens by itself. Of several, JAX's listener passes the notice on, so that all stop
    after the same step.
    """

    def __init__(self):
        self._noticed = False
        self._stopping_since = 0.0
        self._previous: Any = None

    def __enter__(self) -> 'StopNotice':
        # Ours would replace JAX's listener; outside the main thread Python allows none.
        alone = not jax.distributed.is_initialized()
        if alone and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _notice(self, *_) -> None:
        self._noticed = True

    def stops_after(self, step: int) -> bool:
        """Whether to save and stop after `step`; every process asks at every step."""
        if jax.distributed.is_initialized():
            stops = multihost_utils.reached_preemption_sync_point(step)
        else:
            stops = self._noticed
        self._stopping_since = time.monotonic()
        return stops

    def stopped(self, step: int) -> Preempted:
        """What to raise once the state after `step` is saved."""
        return Preempted(
            f'stopped by SIGTERM after step {step}, saved in '
            f'{time.monotonic() - self._stopping_since:.1f} s; the same command goes on from there'
        )
