"""Two processes of one mesh: texts, shares of a batch and keys agree between them."""

import os
import socket
import subprocess
import sys

from helpers.paths import REPOSITORY

CODE = """
import sys
import jax
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), initialization_timeout=100)
import numpy as np
from infinity_jax.inference.generator import image_keys
from infinity_jax.weights.placement import share_batch
from infinity_jax.runtime.host_texts import first_text, from_first_process
from infinity_jax.sharding import MeshConfig, make_mesh, to_host
rank = jax.process_index()
texts = from_first_process([f'a café of {rank}', 'x' * (5 + 10 * rank)])
first = [first_text(text) for text in ('', 'é' * rank, 'both')]
mesh = make_mesh(MeshConfig(data=2, fsdp=2))
indices = share_batch(np.arange(4), mesh)
seeds = np.array([(3, i) for i in range(4)], np.uint32)
keys = jax.random.key_data(image_keys(share_batch(seeds, mesh)))
alone = jax.random.key_data(image_keys(seeds))
equal = bool((to_host(keys, mesh) == alone).all())
print('result', texts, first, to_host(indices, mesh).tolist(), equal)
"""


def test_texts_batches_and_keys_agree():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    root = str(REPOSITORY)
    path = os.pathsep.join([root, os.environ.get('PYTHONPATH', '')])
    environment = {**os.environ, 'PYTHONPATH': path, 'PYTHONUTF8': '1'}
    started = [
        subprocess.Popen(
            [sys.executable, '-c', CODE, address, str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            encoding='utf-8',
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    results = [line for out in outputs for line in out.splitlines() if line.startswith('result')]
    assert results == ["result ['a café of 0', 'xxxxx'] ['', 'é', 'both'] [0, 1, 2, 3] True"] * 2
