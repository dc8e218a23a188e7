import argparse
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers.generation import small_model
from helpers.models import changed
from helpers.paths import REPOSITORY
from PIL import Image

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.commands.device_flags import add_device_flags, mesh_of
from infinity_jax.weights.model_folder import save_model


def mesh(*flags):
    parser = argparse.ArgumentParser()
    add_device_flags(parser)
    return mesh_of(parser.parse_args(flags))


def test_devices_share_the_images_unless_the_axes_say_otherwise():
    assert mesh() is None
    assert mesh('--devices', '4').shape == {'data': 4, 'fsdp': 1, 'tensor': 1, 'sequence': 1}
    assert mesh('--devices', 'all').shape['data'] == 8
    split = mesh('--mesh', 'data=2,tensor=3')
    assert split.devices.size == 6 and split.shape['tensor'] == 3 and split.shape['fsdp'] == 1
    assert mesh('--mesh', 'tensor=2,data=-1').shape['data'] == 4
    assert mesh('--devices', '4', '--mesh', 'fsdp=-1').shape['fsdp'] == 4


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--devices', '0'], "--devices is '0'; wanted a number from 1, or all"),
        (['--devices', 'two'], "--devices is 'two'"),
        (['--devices', '16'], 'ask for 16 devices; there are 8'),
        (['--mesh', 'data=3,tensor=4'], 'ask for 12 devices; there are 8'),
        (['--mesh', 'model=2'], "--mesh is 'model=2'; wanted numbers of the axes data, fsdp"),
        (['--mesh', 'data=2,data=2'], '--mesh is'),
        (['--mesh', 'data'], '--mesh is'),
        (['--devices', '4', '--mesh', 'tensor=8'], 'does not cover 4 devices'),
        (['--devices', '4', '--mesh', 'data=3,tensor=-1'], ': data=1 in --mesh does'),
        (['--mesh', 'data=0'], '--mesh data is 0; wanted a whole number from 1'),
        (['--mesh', 'data=-5'], '--mesh data is -5; wanted a whole number from 1'),
        (['--mesh', 'tensor=-1,data=-1'], '--mesh tensor and data are -1, each for all'),
    ],
)
def test_what_does_not_fit_is_refused(flags, message):
    with pytest.raises(UserError) as raised:
        mesh(*flags)
    assert message in str(raised.value)


def in_two_processes(command):
    """Runs a command in two processes of one device each; returns their outputs."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        'PYTHONPATH': str(REPOSITORY),
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': '1',
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': '2',
    }
    started = [
        subprocess.Popen(
            [sys.executable, '-m', 'infinity_jax.cli', *command],
            env={**environment, 'JAX_PROCESS_ID': str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    return [out for out, _ in outputs]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A small model of square images, in float32."""
    folder = tmp_path_factory.mktemp('model') / 'square'
    square = changed(small_model(), schedule=ScaleSchedule.free(((1, 1), (2, 2), (8, 8))))
    save_model(folder, square)
    return str(folder)


def test_generate_on_several_devices_writes_the_images_of_one(tmp_path, capsys, model):
    prompts = ['a red apple', 'a cat', '--num', '2', '--seed', '3', '--checkpoint', model]
    main(['generate', *prompts, '--out', str(tmp_path / 'one.png')])
    main(['generate', *prompts, '--out', str(tmp_path / 'four.png'), '--devices', '2'])
    capsys.readouterr()
    for i in range(4):
        one, other = (np.asarray(Image.open(tmp_path / f'{n}_00{i}.png')) for n in ('one', 'four'))
        assert (one == other).all()


def test_an_evaluation_on_several_devices_writes_the_files_of_one(tmp_path, capsys, model):
    command = ['evaluate', 'demo', '--count', '4', '--subset', 'starter', '--checkpoint', model]
    command.append('--out')
    main([*command, str(tmp_path / 'one')])
    main([*command, str(tmp_path / 'two'), '--devices', '2'])
    main([*command, str(tmp_path / 'split'), '--mesh', 'tensor=2'])
    capsys.readouterr()
    outputs = in_two_processes([*command, str(tmp_path / 'processes'), '--devices', 'all'])
    assert ['captions of each kind' in output for output in outputs] == [True, False]
    wanted = evaluation_of(tmp_path / 'one')
    for other in ('two', 'split', 'processes'):
        assert evaluation_of(tmp_path / other) == wanted, other


def evaluation_of(folder):
    """The files of an evaluation, but for the time that it took."""
    results = json.loads((folder / 'evaluation.json').read_text())
    assert results.pop('seconds_per_image') > 0
    return results, (folder / 'evaluation.png').read_bytes()


def test_an_error_on_several_devices_is_one_line(capsys):
    with pytest.raises(SystemExit) as raised:
        main(['generate', 'a cat', '--devices', '99'])
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith('error: --devices and --mesh ask')
