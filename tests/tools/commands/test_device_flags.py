import argparse

import numpy as np
import pytest
from PIL import Image

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.tools.commands.device_flags import add_device_flags, mesh_of


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
    ],
)
def test_what_does_not_fit_is_refused(flags, message):
    with pytest.raises(UserError) as raised:
        mesh(*flags)
    assert message in str(raised.value)


def test_generate_on_several_devices_writes_the_images_of_one(tmp_path, capsys):
    prompts = ['a red apple', 'a cat', '--num', '2', '--seed', '3']
    main(['generate', *prompts, '--out', str(tmp_path / 'one.png')])
    main(['generate', *prompts, '--out', str(tmp_path / 'four.png'), '--devices', '2'])
    capsys.readouterr()
    for i in range(4):
        one, other = (np.asarray(Image.open(tmp_path / f'{n}_00{i}.png')) for n in ('one', 'four'))
        assert (one == other).all()


def test_an_error_on_several_devices_is_one_line(capsys):
    with pytest.raises(SystemExit) as raised:
        main(['generate', 'a cat', '--devices', '99'])
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith('error: --devices and --mesh ask')
