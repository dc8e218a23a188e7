"""A process of a run that does nothing but collective steps; tests start several.

Arguments: seconds without a sign of life after which a process counts as dead.
"""

import sys

from infinity_jax.runtime import distributed as processes
from infinity_jax.runtime.supervisor import supervise

supervise()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from infinity_jax.runtime.exit_codes import one_line_endings  # noqa: E402
from infinity_jax.runtime.preemption import StopNotice  # noqa: E402
from infinity_jax.sharding import make_mesh  # noqa: E402

with one_line_endings():
    processes.HEARTBEAT_SECONDS = int(sys.argv[1])
    print('joining', flush=True)
    processes.join_processes()
    sharding = NamedSharding(make_mesh(), PartitionSpec('data'))
    x = jax.make_array_from_process_local_data(sharding, np.ones(1, np.float32))
    step = jax.jit(lambda x: (x + x.sum()) / 3, out_shardings=sharding)
    with StopNotice() as notice:
        for i in range(1_000_000):
            x = step(x)
            x.block_until_ready()
            if i == 0:
                print('running', flush=True)
            if notice.stops():
                raise notice.stopped(i)
