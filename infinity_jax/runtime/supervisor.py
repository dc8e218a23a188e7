"""A parent process of the trainer, which reports in one line how the trainer ended.

When a process of a run dies, JAX aborts the others from C++, where no Python code can print.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

from infinity_jax.runtime.distributed import PEER_DIED, RESUME, launcher

PARENT = (
    'INFINITY_JAX_SUPERVISOR'  # environment variable of the child: process id of the supervisor
)


def supervise() -> None:
    """Runs this command in a child and ends with the child's exit code; returns in the child.

    Returns at once if the run is one process, which needs no supervisor, and on Windows.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is not None:
        _die_with(int(parent))
        return
    if launcher() is None or os.name != 'posix':  # process groups
        return
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, PARENT: str(os.getpid())},
        process_group=0,  # signals reach the child once, through this process
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    message, code = ending(child.wait())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # data workers that survived an abort
    if message:
        print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def ending(code: int) -> tuple[str, int]:
    """A message and an exit code for the trainer's return code; a negative one is a signal."""
    if code >= 0:  # the trainer printed its own message
        return '', code
    if -code == signal.SIGABRT:
        return (
            f'error: another process of this run died or did not start, see above; {RESUME}',
            PEER_DIED,
        )
    name = signal.Signals(-code).name
    hint = ', which the system sends when memory runs out' if -code == signal.SIGKILL else ''
    return f'error: this process was ended by {name}{hint}; {RESUME}', 128 - code


def _die_with(parent: int) -> None:
    """Asks the kernel to kill this process when `parent` ends, so that it frees its devices."""
    if sys.platform.startswith('linux'):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request
        sys.exit(PEER_DIED)
