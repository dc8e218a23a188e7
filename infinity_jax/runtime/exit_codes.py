"""Ends a run with one line on stderr and an exit code. launch/README.md lists the codes."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

import jax

from infinity_jax.errors import UserError
from infinity_jax.runtime.distributed import PEER_DIED, RESUME
from infinity_jax.runtime.preemption import Preempted, Terminated

CRASHED = 1
REFUSED = 2
INTERRUPTED = 130  # 128 + SIGINT
PREEMPTED = 143  # 128 + SIGTERM
# First words of XLA's errors, of any type, when a connection to another process breaks.
LOST = ('UNKNOWN', 'UNAVAILABLE', 'INTERNAL', 'DEADLINE_EXCEEDED', 'ABORTED', 'CANCELLED')


@contextlib.contextmanager
def one_line_endings() -> Iterator[None]:
    """Turns the error or signal that stops a run into a line on stderr and an exit code.

    In a run of one process, an unexpected error passes through with its traceback.
    """
    try:
        yield
    except Preempted as stop:
        print(stop, file=sys.stderr)
        sys.exit(PREEMPTED)
    except UserError as error:
        _end(f'error: {error}', REFUSED)
    except Terminated as stop:
        _end(str(stop), PREEMPTED)
    except KeyboardInterrupt:
        _end('stopped; the same command goes on from the last checkpoint', INTERRUPTED)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        if str(error).startswith(LOST):
            message = 'error: a device or another process of this run failed, see the error above'
            _end(f'{message}; {RESUME}', PEER_DIED)
        _end('error: this process failed, see the error above; the others end too', CRASHED)


def _end(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        # On a regular exit JAX would wait for the others, which wait for this process in a step.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
