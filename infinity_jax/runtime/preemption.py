"""A notice that the machine will be taken away: SIGTERM, on any one of a run's processes."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was asked to stop and has saved, all processes together; the message says so."""


class Terminated(BaseException):
    """SIGTERM came when nothing was left to save. Like KeyboardInterrupt, no `Exception`."""


class StopNotice:
    """Listens for SIGTERM while it is entered, as a context manager.

    One process listens by itself. Of several, JAX's listener passes the notice on, so that all hear
    of it at the same question.
    """

    def __init__(self):
        self._noticed = False
        self._questions = 0
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

    def stops(self) -> bool:
        """Whether to save and stop now; every process asks at the same places, after each step."""
        self._questions += 1
        if jax.distributed.is_initialized():
            # All agree on the question after the last one that any of them has asked.
            stops = multihost_utils.reached_preemption_sync_point(self._questions)
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


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Training is over and saved: SIGTERM raises `Terminated` once Python has the word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_):
        raise Terminated(
            'stopped by SIGTERM while finishing; training is done and saved: the same command '
            'evaluates and exports it'
        )

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        # JAX's listener, which is none of Python's, has nothing more to listen for.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
