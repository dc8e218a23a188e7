"""Rates are those of finished steps, and pauses are not counted."""

import types

import jax
import numpy as np
import pytest

from infinity_jax.runtime.accelerators import PEAKS
from infinity_jax.training import throughput
from infinity_jax.training.metrics import RunLog
from infinity_jax.training.throughput import Stopwatch, mesh_peak, shown, time_left


@pytest.mark.parametrize(
    ('steps', 'step_seconds', 'wanted'),
    [
        (3580, 0.2411, '0.24 s per step: 3,580 more steps take about 14 minutes'),
        (100, 0.5, '0.5 s per step: 100 more steps take about 50 seconds'),
        (10_000, 1.0, '1 s per step: 10,000 more steps take about 2.8 hours'),
    ],
)
def test_the_expected_time_is_in_a_readable_unit(steps, step_seconds, wanted):
    assert time_left(steps, step_seconds) == wanted


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(throughput.time, 'monotonic', lambda: clock.now)
    return clock


def test_rates(clock):
    watch = Stopwatch(batch_size=16, peak_flops=4e12)
    for flops in (3e12, 5e12):
        watch.add_wait(0.5)
        watch.add_step(flops)
    clock.now += 4
    assert watch.read() == pytest.approx(
        {
            'step_seconds': 2.0,
            'pictures_per_second': 8.0,
            'data_wait_seconds': 0.5,
            'model_tflops_per_second': 2.0,
            'mfu': 0.5,
        }
    )
    clock.now += 7
    watch.restart()  # after a pause
    watch.add_step(1e12)
    clock.now += 1
    assert watch.read()['step_seconds'] == 1.0


def test_mfu_is_left_out_where_the_peak_is_unknown(clock):
    watch = Stopwatch(batch_size=1, peak_flops=None)
    watch.add_step(1.0)
    clock.now += 1
    rates = watch.read()
    assert 'mfu' not in rates and 'MFU' not in shown(rates)
    assert shown({**rates, 'mfu': 0.5}) == {'images/s': 1.0, 'TFLOP/s': 1e-12, 'MFU': 0.5}


def test_the_peak_is_that_of_all_devices():
    device = types.SimpleNamespace(device_kind='TPU v5 lite')
    mesh = types.SimpleNamespace(devices=np.full((2, 4), device))
    assert mesh_peak(mesh) == 8 * PEAKS['v5e'].bf16_flops
    assert mesh_peak(types.SimpleNamespace(devices=np.array(jax.devices()))) is None


def test_the_bar_does_without_pauses(clock, tmp_path):
    log = RunLog(tmp_path, 0, 10)
    bar = log._bar
    before = bar.start_t, bar.last_print_t
    with log.pause():
        clock.now += 50
    assert (bar.start_t, bar.last_print_t) == (before[0] + 50, before[1] + 50)
    log.close()
