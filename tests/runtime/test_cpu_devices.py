"""The number of CPU devices that a training run uses."""

import jax
import numpy as np
import pytest

from infinity_jax.runtime import cpu_devices
from infinity_jax.sharding import MeshConfig, batch_sharding, make_mesh, replicated


@pytest.mark.parametrize(
    ('images', 'cores', 'wanted'),
    [
        (16, 1, 1),
        (16, 2, 2),
        (16, 3, 2),  # 16 images are not shared evenly by three
        (16, 64, 4),  # of at least four images each
        (4, 2, 1),
        (6, 8, 1),
        (64, 12, 8),
    ],
)
def test_devices_share_the_images_evenly(images, cores, wanted):
    assert cpu_devices.devices_for(images, cores) == wanted


@pytest.fixture
def chosen(monkeypatch):
    """The number of devices that `use_cores` sets on a machine of two cores, else None."""
    found = {}
    for name in ('JAX_NUM_CPU_DEVICES', 'JAX_COORDINATOR_ADDRESS', 'XLA_FLAGS'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpu_devices, 'cores', lambda: 2)
    monkeypatch.setattr(jax.config, 'update', found.__setitem__)

    def choose():
        cpu_devices.use_cores(16)
        return found.get('jax_num_cpu_devices')

    return choose


def test_each_core_is_a_device(chosen):
    assert chosen() == 2


@pytest.mark.parametrize(
    ('variable', 'value'),
    [
        ('JAX_NUM_CPU_DEVICES', '1'),
        ('XLA_FLAGS', '--xla_force_host_platform_device_count=8'),
    ],
)
def test_the_number_that_the_user_sets_stays(chosen, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert chosen() is None


def test_one_of_several_processes_has_one_device(chosen, monkeypatch):
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', '127.0.0.1:1')
    monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
    monkeypatch.setenv('JAX_PROCESS_ID', '0')
    assert chosen() is None


def test_the_number_stays_once_devices_are_used_and_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cpu_devices, 'cores', lambda: 2)
    for name in ('JAX_NUM_CPU_DEVICES', 'XLA_FLAGS'):
        monkeypatch.delenv(name, raising=False)
    before = jax.device_count()
    cpu_devices.use_cores(16)
    assert jax.device_count() == before != 2
    assert f'{before} CPU devices where 2 would be faster' in capsys.readouterr().err


def test_programs_of_several_cpu_devices_run_one_after_the_other():
    mesh = make_mesh(MeshConfig(data=8))
    x = jax.device_put(np.ones((8, 1000, 1000), np.float32), batch_sharding(mesh))
    program = jax.jit(lambda x: (x @ x @ x @ x).sum(0), out_shardings=replicated(mesh))
    jax.block_until_ready(program(x))
    assert not program(x).is_ready()
    assert cpu_devices.one_at_a_time(mesh, program)(x).is_ready()
    alone = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    assert cpu_devices.one_at_a_time(alone, program) is program
