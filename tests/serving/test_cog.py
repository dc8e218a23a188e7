"""`predict.py` under the runner of the `cog` package, which Replicate uses."""

import base64
import contextlib
import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import jax
import numpy as np
import pytest
import yaml
from helpers.generation import small_model
from helpers.paths import LAUNCH, REPOSITORY
from PIL import Image

from infinity_jax.weights.model_folder import save_model

needs_cog = pytest.mark.skipif(
    not importlib.util.find_spec('coglet'), reason='the package cog is not installed'
)


def test_the_requirements_are_those_of_the_package():
    of_package = {line.strip() for line in (REPOSITORY / 'setup.cfg').read_text().splitlines()}
    lines = (LAUNCH / 'cog_requirements.txt').read_text().splitlines()
    ours = [line for line in lines if line and not line.startswith('#')]
    assert ours[0] == 'jax[cuda13]>=0.10.1' and 'jax>=0.10.1' in of_package
    assert not set(ours[1:]) - of_package


def test_the_description_names_files_that_exist():
    description = yaml.safe_load((REPOSITORY / 'cog.yaml').read_text())
    file, _, name = description['predict'].partition(':')
    assert f'class {name}(' in (REPOSITORY / file).read_text()
    assert (REPOSITORY / description['build']['python_requirements']).is_file()


@contextlib.contextmanager
def runner(model):
    """cog's own server with our predictor; yields a client."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    surroundings = {
        'COG_PREDICT_TYPE_STUB': 'predict.py:Predictor',
        'INFINITY_JAX_MODEL': str(model),
        'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
        'JAX_PLATFORMS': 'cpu',
        # The runner starts its worker with the `python` that it finds first.
        'PATH': os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']]),
        'PORT': str(port),
        'PYTHONPATH': os.pathsep.join([str(REPOSITORY), *sys.path]),
    }
    command = [sys.executable, '-m', 'cog.server.http', '--host', '127.0.0.1']
    process = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | surroundings)
    try:
        with httpx.Client(base_url=f'http://127.0.0.1:{port}', timeout=120) as client:
            for _ in range(1200):
                with contextlib.suppress(httpx.TransportError):
                    if client.get('/health-check').json()['status'] != 'STARTING':
                        break
                time.sleep(0.1)
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def image_of(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(',')[2])))


@needs_cog
def test_it_generates_and_edits_under_the_runner_of_cog(tmp_path):
    save_model(tmp_path / 'model', small_model())
    array = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, 'PNG')
    source = 'data:image/png;base64,' + base64.b64encode(buffer.getvalue()).decode()

    def predict(**inputs):
        body = {'input': {'prompt': 'a cat'} | inputs}
        while (answer := client.post('/predictions', json=body)).status_code == 409:
            time.sleep(0.1)  # the runner takes a moment after each answer
        return answer

    with runner(tmp_path / 'model') as client:
        done = predict(seed=5).json()
        assert done['status'] == 'succeeded', done
        assert [image_of(url).size for url in done['output']] == [(4, 6)]
        assert predict(seed=5).json()['output'] == done['output']
        edited = predict(seed=5, image=source, prompt_strength=0, output_format='webp').json()
        assert image_of(edited['output'][0]).format == 'WEBP', edited
        refused = predict(aspect_ratio='16:9').json()
        assert refused['status'] == 'failed' and 'one image shape' in refused['error']
