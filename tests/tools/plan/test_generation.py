"""The command `plan`: arithmetic of estimates, and its output without a compiler for TPUs."""

import importlib.util
import json

import numpy as np
import pytest

from infinity_jax import cli
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.plan import topology
from infinity_jax.tools.plan.kernel_flops import training_flops
from infinity_jax.tools.plan.program_cost import Memory, read_too_large
from infinity_jax.tools.plan.program_time import ProgramTime
from infinity_jax.tools.plan.topology import parse_topology
from infinity_jax.tools.plan.training import Analysis, extrapolate, largest_batch, mfu

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
        (['--topology', 'v5e:4x4', '--remat', 'half'], "remat is 'half'"),
    ],
)
def test_wrong_flags_are_one_line(without_libtpu, capsys, flags, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(['plan', f'{CONFIG}:2b_256', *flags])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='libtpu compiles')
def test_the_demo_compiles_for_a_slice(capsys):
    cli.main(['plan', CONFIG, '--topology', 'v5e:2x2', '--quick'])
    out = capsys.readouterr().out
    assert 'estimated MFU' in out and 'all-reduce' in out
