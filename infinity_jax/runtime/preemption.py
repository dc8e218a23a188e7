"""Preemption: SIGTERM on any process of a run announces that its machine will be taken away."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was asked to stop, and all its processes have saved together."""


class Terminated(BaseException):
    """SIGTERM came after everything was saved. Like KeyboardInterrupt, it is no `Exception`."""


class StopNotice:
    """Listens for SIGTERM while it is entered, as a context manager.

    A single process handles the signal itself. With several, JAX's listener passes the notice on,
    so that `stops` returns True in all of them after the same step.
    """

    def __init__(self):
        self._noticed = False
        self._calls = 0
        self._stopping_since = 0.0
        self._previous: Any = None

    def __enter__(self) -> 'StopNotice':
        # This handler would replace JAX's. Python allows handlers in the main thread only.
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
        """Whether to save and stop now. Every process calls it after each step."""
        self._calls += 1
        if jax.distributed.is_initialized():
            # All processes stop at the call after the last one that any of them has made.
            stops = multihost_utils.reached_preemption_sync_point(self._calls)
        else:
            stops = self._noticed
        self._stopping_since = time.monotonic()
        return stops

    def stopped(self, step: int) -> Preempted:
        """The exception to raise once the state after `step` is saved."""
        return Preempted(
            f'stopped by SIGTERM after step {step}, saved in '
            f'{time.monotonic() - self._stopping_since:.1f} s; the same command goes on from there'
        )


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """After training is saved: SIGTERM raises `Terminated` at the next Python instruction."""
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
        # JAX's listener, which Python does not manage, is no longer needed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
