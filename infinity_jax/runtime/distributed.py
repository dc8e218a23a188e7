"""The processes of a run: which launcher started them, and joining them.

Imports JAX only to join, so that whoever merely asks stays light.
"""

import glob
import importlib.util
import os
import re
import urllib.request

from infinity_jax.errors import UserError, first_line

HEARTBEAT_SECONDS = 30  # without a sign of life a process counts as dead, and the others end
START_SECONDS = 300  # the first process waits so long for the last one
# Processes that are done wait while the first one exports and evaluates. One that failed never
# gets here, and one that died is noticed by its heartbeat.
SHUTDOWN_SECONDS = 24 * 3600

METADATA = 'http://{}/computeMetadata/v1/instance/attributes/{}'  # of a Google Cloud machine


def launcher() -> str | None:
    """What says that this process is one of several: a name of the function below, or None.

    Raises:
      UserError: JAX_COORDINATOR_ADDRESS is set, but not the numbers beside it.
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
    """JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID: works everywhere."""
    return bool(os.environ.get('JAX_COORDINATOR_ADDRESS')) and _numbers()[0] > 1


def _numbers() -> tuple[int, int]:
    """How many processes, and which one this is."""
    try:
        return int(os.environ['JAX_NUM_PROCESSES']), int(os.environ['JAX_PROCESS_ID'])
    except (KeyError, ValueError):
        raise UserError(
            'JAX_COORDINATOR_ADDRESS is set, JAX_NUM_PROCESSES or JAX_PROCESS_ID is not a number; '
            'set both, or neither of the three to train in one process'
        ) from None


def _slurm_step() -> bool:
    """A task that srun started beside others; an sbatch script itself is no step."""
    return 'SLURM_STEP_NODELIST' in os.environ and int(os.environ.get('SLURM_NTASKS', '1')) > 1


def _tpu_slice() -> bool:
    """A TPU machine of several: GKE says so in the environment, Cloud TPU in its metadata."""
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
    """An attribute of this machine; '' where it has none, or is no Google Cloud machine."""
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
    """Joins the other processes of the run, if there are any; before anything touches a device.

    Raises:
      UserError: the launcher's variables do not add up.
    """
    found = launcher()
    if found is None:
        return
    import jax

    arguments = {}  # JAX finds them itself under SLURM and on TPUs
    if found == 'environment':
        count, index = _numbers()
        address = os.environ['JAX_COORDINATOR_ADDRESS']
        arguments = {'coordinator_address': address, 'num_processes': count, 'process_id': index}
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f'could not join the other processes ({found}): {first_line(error)}; set '
            'JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID on each'
        ) from None
