"""The command `plan`: arithmetic of estimates, and its output without a compiler for TPUs."""

import importlib.util
import json
import types

import numpy as np
import pytest

from infinity_jax import cli
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, deviceless_mesh
from infinity_jax.tools.plan import topology
from infinity_jax.tools.plan.kernel_flops import training_flops
from infinity_jax.tools.plan.program_cost import Memory, ProgramCost, read_too_large
from infinity_jax.tools.plan.program_time import ProgramTime
from infinity_jax.tools.plan.report import METHOD, training_json, training_lines
from infinity_jax.tools.plan.topology import parse_topology
from infinity_jax.tools.plan.training import (
    Analysis,
    TrainingPlan,
    extrapolate,
    images_at_once,
    largest_batch,
    mfu,
)

GIB = 2**30
CONFIG = 'configs/t2i.py'


@pytest.fixture
def without_libtpu(monkeypatch):
    monkeypatch.setattr(topology, 'can_compile', lambda topology: False)


def test_depth_is_extrapolated_from_two_and_three_layers():
    two, three = ProgramTime(1.0, 0.5, 0.0, 0.2, 0.1), ProgramTime(1.25, 0.75, 0.0, 0.1, 0.2)
    whole = extrapolate((two, three), 32)
    assert whole.estimated == pytest.approx(1.0 + 30 * 0.25)
    assert whole.kernels == pytest.approx(0.5 + 30 * 0.25)
    assert whole.exposed == 0  # never below zero


def test_mfu_is_model_flops_over_the_peak():
    chips = parse_topology('v5e:2x2')
    analysis = Analysis(1, 1, 2 * 4 * 197e12, 1e30, 8)
    assert mfu(analysis, 4.0, chips) == pytest.approx(0.5)


def test_the_largest_batch_lies_on_a_line():
    assert largest_batch(((1, 3 * GIB), (2, 5 * GIB)), 12 * GIB) == 5
    assert largest_batch(((1, 13 * GIB), (2, 15 * GIB)), 12 * GIB) == 0
    assert largest_batch(((1, GIB), (2, GIB)), 12 * GIB) == 2


def test_donated_outputs_are_not_counted_twice():
    assert Memory(arguments=10, outputs=9, aliased=8, temporaries=5, code=1).total == 17


@pytest.mark.parametrize(
    'message, size',
    [
        ('Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.', 20.5),
        ('memory required for HLO temporaries (512.00G) exceeds available HBM (15.75G).', 512),
    ],
)  # fmt: skip
def test_the_compiler_says_what_it_would_need(message, size):
    assert read_too_large(message) == size * GIB


def test_blocks_that_no_query_sees_are_not_counted():
    schedule = ScaleSchedule.for_image(1.0, '1M')
    arrays = [('bf16', (1, 1, 10752, 128))] * 2
    counted = training_flops(schedule)('splash_mha_fwd', arrays)
    ends = np.repeat([e for _, e in schedule.spans], [e - s for s, e in schedule.spans])
    needed = 4 * ends.astype(float).sum() * 128
    assert needed < counted < 1.2 * needed


def test_analytic_numbers_alone(without_libtpu, tmp_path, capsys):
    file = tmp_path / 'plan.json'
    cli.main(['plan', f'{CONFIG}:2b_1024', '--topology', 'v5e:16x16', '--json', str(file)])
    out = capsys.readouterr().out
    assert 'libtpu is not installed' in out and 'GiB per chip' in out
    figures = json.loads(file.read_text())
    assert figures['program'] is None and not figures['estimates']
    assert figures['parameters'] == pytest.approx(2.205e9, rel=1e-3)
    # Four float32 copies (parameters, average, two moments) over 128 chips, and little else.
    assert figures['state_bytes'] == pytest.approx(figures['parameters'] * 16 / 128, rel=0.02)


def test_generation_without_libtpu(without_libtpu, capsys):
    cli.main(['plan', f'{CONFIG}:2b_256', '--topology', 'v5e:1x1', '--generation'])
    out = capsys.readouterr().out
    assert 'generation: ' in out and 'libtpu is not installed' in out


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--topology', 'v5e:16'], 'v5e slices have 2 axes'),
        (['--topology', 'h999:8'], 'unknown chip'),
        (['--topology', 'v5e:3x3'], 'does not cover 9 devices'),
        (
            ['--topology', 'v5e:3x3', '--config.mesh.fsdp=-1', '--config.mesh.data=1'],
            'does not divide',
        ),
        (['--topology', 'v5e:4x4', '--at-once', '0'], '--at-once is 0'),
        (
            ['--topology', 'v5e:4x4', '--config.mesh.fsdp=16', '--remat', 'half'],
            "remat is 'half'",
        ),
        (
            ['--topology', 'v5e:4x4', '--num', '2'],
            '--num is for --generation, which is not given (the images',
        ),
        (
            ['--topology', 'v5e:4x4', '--weights', 'int8'],
            '--config.lora.base_dtype=int8); add that',
        ),
        (['--topology', 'v5e:4x4', '--cache', 'int8'], '--cache is for --generation'),
        (['--topology', 'v5e:4x4', '--text-encoder', 'host'], '--text-encoder is for --generation'),
        (
            ['--topology', 'v5e:4x4', '--decoder-precision', 'tf32'],
            '--decoder-precision is for --generation',
        ),
        (
            ['--topology', 'v5e:4x4', '--generation', '--at-once', '1'],
            '--at-once is for training, and --generation is given (the images of a call are set',
        ),
        (['--topology', 'v5e:4x4', '--generation', '--accumulate', '2'], '--accumulate is for'),
        (['--topology', 'v5e:4x4', '--generation', '--remat', 'full'], '--remat is for training'),
        (['--topology', 'v5e:4x4', '--generation', '--from', 'images'], '--from is for training'),
    ],
)
def test_wrong_flags_are_one_line(without_libtpu, capsys, flags, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(['plan', f'{CONFIG}:2b_256', *flags])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize('flags', [['--generation'], ['--from', 'features'], ['--num', '1']])
def test_flags_of_text_to_image_are_not_for_tokenizers(without_libtpu, capsys, flags):
    with pytest.raises(SystemExit):
        cli.main(['plan', 'configs/tokenizer.py', '--topology', 'v5e:1x1', *flags])
    assert f'{flags[0]} is for configs of task t2i, and configs/tok' in capsys.readouterr().err


def figures_of(tmp_path, *flags):
    file = tmp_path / 'plan.json'
    cli.main(['plan', *flags, '--json', str(file)])
    return json.loads(file.read_text())


def test_adapters_are_planned_without_the_weights_they_are_added_to(without_libtpu, tmp_path):
    flags = '--config.lora.rank=16', '--config.mesh.fsdp=1', '--at-once', '1', '--accumulate', '1'
    found = figures_of(tmp_path, f'{CONFIG}:2b_512', '--topology', 'v5e:1x1', *flags)
    assert found['parameters'] == pytest.approx(0.011 * 2.205e9, rel=0.01)
    assert found['state_bytes'] == pytest.approx(16 * found['parameters'], rel=0.01)


def test_chips_of_the_tensor_axis_share_their_images(without_libtpu, tmp_path):
    flags = '--config.mesh.tensor=2', '--config.mesh.fsdp=2', '--at-once', '3', '--accumulate', '1'
    found = figures_of(tmp_path, f'{CONFIG}:2b_512', '--topology', 'v5e:2x2', *flags)
    assert found['images'] == 2 * 3
    config = types.SimpleNamespace(batch_size=1, accumulate_steps=1)
    assert images_at_once(config, deviceless_mesh(MeshConfig(data=1, tensor=2), 2)) == 1


def test_a_program_that_is_too_large_was_compiled():
    plan = TrainingPlan(
        Analysis(1, 1, 1.0, 0.0, 1), ProgramCost(None, 30 * GIB, {}, {}, {}, None, (), 1.0)
    )
    slice_ = parse_topology('v5e:4x4')
    assert training_json(plan, slice_)['method'] == training_lines(plan, slice_)[-1] == METHOD


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='libtpu compiles')
def test_the_demo_compiles_for_a_slice(capsys):
    cli.main(['plan', CONFIG, '--topology', 'v5e:2x2', '--quick'])
    out = capsys.readouterr().out
    assert 'estimated MFU' in out and 'all-reduce' in out
