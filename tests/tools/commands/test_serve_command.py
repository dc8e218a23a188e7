import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from helpers.generation import small_model
from helpers.paths import REPOSITORY

from infinity_jax.cli import build_parser, main
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.tools.commands import serve_command
from infinity_jax.weights.model_folder import save_model


def folders(*flags):
    return serve_command._folders(build_parser().parse_args(['serve', *flags]))


def test_models_have_names():
    assert folders() == {'demo': DEMO_FOLDER}
    assert folders('--checkpoint', 'models/x/') == {'x': 'models/x/'}
    given = folders('--checkpoint', 'org/x', '--name', 'first', '--model', 'second=models/y')
    assert given == {'first': 'org/x', 'second': 'models/y'}


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--model', 'x'], "--model is 'x'; wanted NAME=DIR"),
        (['--model', 'demo=x'], "two models are named 'demo'"),
        (['--batch-sizes', '2,x'], "--batch-sizes is '2,x'"),
        (['--timeout', '0'], '--timeout is 0.0; wanted 1 or more'),
        (['--max-waiting', '0'], '--max-waiting is 0; wanted 1 or more'),
        (['--port', '99999'], 'cannot listen on 127.0.0.1:99999'),
    ],
)
def test_wrong_flags_are_one_line(capsys, flags, message):
    with pytest.raises(SystemExit, match='2'):
        main(['serve', *flags])
    assert message in capsys.readouterr().err


def test_without_the_extra_one_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'infinity_jax.serving.server', None)
    with pytest.raises(SystemExit, match='2'):
        main(['serve'])
    assert 'infinity_jax[serve]' in capsys.readouterr().err


def test_sigterm_ends_a_server_once_its_request_is_answered(tmp_path):
    save_model(tmp_path / 'model', small_model())
    command = [
        *(sys.executable, '-m', 'infinity_jax.cli', 'serve', '--checkpoint'),
        *(str(tmp_path / 'model'), '--port', '0', '--no-warm-up'),
    ]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith('serving'):
            break
    (url,) = re.findall(r'serving model on (http://127\.0\.0\.1:\d+)', ''.join(lines))
    answers = []

    def generate():
        body = {'prompt': 'a cat'}
        answers.append(httpx.post(f'{url}/v1/images/generations', json=body, timeout=120))

    while True:
        try:
            httpx.get(f'{url}/health')
            break
        except httpx.TransportError:
            assert process.poll() is None
    thread = threading.Thread(target=generate)
    thread.start()
    time.sleep(0.5)  # the request arrives, and its programs compile for seconds
    process.send_signal(signal.SIGTERM)
    thread.join(120)
    assert process.wait(60) == 0
    assert answers[0].status_code == 200
