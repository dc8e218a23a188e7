"""A process beside the trainer that outlives it, and says in one line how it died.

When a process of a run dies, JAX aborts the others from C++, where no Python code can speak.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

from infinity_jax.runtime.distributed import launcher

PEER_DIED = 75  # exit code: nothing is wrong here, start again
PARENT = 'INFINITY_JAX_SUPERVISOR'  # environment variable of the child: who watches it
RESUME = 'start the same command again on every host: it goes on from what was saved last'


def supervise() -> None:
    """Runs this very command in a child and ends as it does; returns in the child.

    Returns at once where a run is one process: it needs nobody else.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is not None:
        _die_with(int(parent))
        return
    if launcher() is None:
        return
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, PARENT: str(os.getpid())},
        process_group=0,  # so that signals come through us, once
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    message, code = ending(child.wait())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # data workers that an abort left behind
    if message:
        print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def ending(code: int) -> tuple[str, int]:
    """A message and the exit code for how the trainer ended, a negative number being a signal."""
    if code >= 0:  # it spoke for itself
        return '', code
    if -code == signal.SIGABRT:
        return (
            f'error: another process of this run died or did not start, as told above; {RESUME}',
            PEER_DIED,
        )
    name = signal.Signals(-code).name
    hint = ', which the system does when memory runs out' if -code == signal.SIGKILL else ''
    return f'error: this process was ended by {name}{hint}; {RESUME}', 128 - code


def _die_with(parent: int) -> None:
    """Has the kernel kill this process when `parent` is killed, so that it holds no device."""
    if sys.platform.startswith('linux'):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before we asked
        sys.exit(PEER_DIED)
