"""The processes of a run: finds the launcher that started them, and joins them.

Imports JAX only to join, so that finding the launcher is fast.
"""

import contextlib
import glob
import importlib.util
import os
import re
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

from infinity_jax.errors import UserError, first_line

HEARTBEAT_SECONDS = 30  # a process that is silent for so long counts as dead; the others end
# From the start of the first process to that of the last one. Until all have joined there are no
# heartbeats: a process that died before looks like one that starts late.
START_SECONDS = 60
START_VARIABLE = 'INFINITY_JAX_START_SECONDS'  # environment variable that replaces it
# Finished processes wait while the first one exports and evaluates. A process that failed does not
# reach this point, and a process that died is detected by its heartbeat.
SHUTDOWN_SECONDS = 24 * 3600

PEER_DIED = 75  # exit code: another process failed; start this one again
RESUME = 'start the same command again on every host: it goes on from the last checkpoint'

METADATA = 'http://{}/computeMetadata/v1/instance/attributes/{}'  # of a Google Cloud machine


def launcher() -> str | None:
    """Finds how this process was started as one of several.

    Returns:
      'environment', 'slurm' or 'tpu'; None for a single process.

    Raises:
      UserError: JAX_COORDINATOR_ADDRESS is set without JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    for name, several in (
        ('environment', _named_in_environment),
        ('slurm', _slurm_step),
        ('tpu', _tpu_slice),
    ):
        if several():
            return name
    return None


def _named_in_environment() -> bool:
    """Whether JAX_COORDINATOR_ADDRESS and its two numbers are set; works on all machines."""
    return bool(os.environ.get('JAX_COORDINATOR_ADDRESS')) and _numbers()[0] > 1


def _numbers() -> tuple[int, int]:
    """The number of processes and the index of this one."""
    try:
        return int(os.environ['JAX_NUM_PROCESSES']), int(os.environ['JAX_PROCESS_ID'])
    except (KeyError, ValueError):
        raise UserError(
            'JAX_COORDINATOR_ADDRESS is set, JAX_NUM_PROCESSES or JAX_PROCESS_ID is not a number; '
            'set both, or neither of the three to train in one process'
        ) from None


def _slurm_step() -> bool:
    """Whether srun started this task as one of several; an sbatch script itself is no step."""
    return 'SLURM_STEP_NODELIST' in os.environ and int(os.environ.get('SLURM_NTASKS', '1')) > 1


def _tpu_slice() -> bool:
    """Whether this is one of several TPU machines, by GKE's environment or the VM's metadata."""
    hosts = os.environ.get('TPU_PROCESS_ADDRESSES') or os.environ.get('TPU_WORKER_HOSTNAMES')
    slices = os.environ.get('MEGASCALE_NUM_SLICES')
    if hosts is None and slices is None and _on_tpu_vm():
        hosts = _metadata('worker-network-endpoints')
        found = re.search(r"^MEGASCALE_NUM_SLICES: *'?(\d+)", _metadata('tpu-env'), re.MULTILINE)
        slices = found and found[1]
    return len((hosts or '').split(',')) * int(slices or 1) > 1


def _on_tpu_vm() -> bool:
    devices = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
    skipped = 'TPU_SKIP_MDS_QUERY' in os.environ  # by the user, as libtpu and JAX understand it
    return bool(devices and importlib.util.find_spec('libtpu') and not skipped)


def _metadata(key: str) -> str:
    """An attribute of this Google Cloud machine; '' if it has none or is another machine."""
    host = os.environ.get('GCE_METADATA_IP', 'metadata.google.internal')
    request = urllib.request.Request(
        METADATA.format(host, key), headers={'Metadata-Flavor': 'Google'}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ''


def join_processes() -> None:
    """Joins the other processes of the run, if any. Call it before JAX uses a device.

    Raises:
      UserError: the launcher's variables are inconsistent, or a process did not answer.

    The process ends with exit code 75 if not all have joined after `START_SECONDS`.
    """
    started_by = launcher()
    if started_by is None:
        return
    import jax

    arguments: dict[str, Any] = {}  # JAX finds them itself under SLURM and on TPUs
    if started_by == 'environment':
        count, index = _numbers()
        address = os.environ['JAX_COORDINATOR_ADDRESS']
        arguments = {'coordinator_address': address, 'num_processes': count, 'process_id': index}
    seconds = _start_seconds()
    try:
        with _ended_after(seconds):
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=seconds,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f'could not join the other processes ({started_by}): {first_line(error)}; set '
            'JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID on each'
        ) from None


def _start_seconds() -> int:
    text = os.environ.get(START_VARIABLE, str(START_SECONDS))
    if not re.fullmatch('[1-9][0-9]{0,5}', text):
        raise UserError(
            f'{START_VARIABLE} is {text!r}; wanted the seconds in which all processes start, such '
            'as 300'
        )
    return int(text)


@contextlib.contextmanager
def _ended_after(seconds: int) -> Iterator[None]:
    """Ends this process if the block takes longer, with a few seconds to spare for JAX itself.

    JAX gives up by itself only while the first process lives.
    """

    def end():
        print(
            f'error: not all processes of this run joined within {seconds} s ({START_VARIABLE}): '
            f'another one died or did not start; {RESUME}',
            file=sys.stderr,
            flush=True,
        )
        os._exit(PEER_DIED)

    timer = threading.Timer(seconds + 5, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
