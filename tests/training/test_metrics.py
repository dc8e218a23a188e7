"""The record of a run: appended, cut back on resume, plotted; spikes of the loss."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from infinity_jax.errors import UserError
from infinity_jax.training.metrics import (
    FILE_NAME,
    MIN_LOSSES,
    RunLog,
    SpikeDetector,
    plot_losses,
    read_metrics,
)


def write_run(folder, start, stop):
    log = RunLog(folder, start, 10)
    for step in range(start + 1, stop + 1):
        log.write(step, 'train', {'loss': jnp.float32(1 / step)})
        log.progress(step, loss=1 / step)
    log.close()


def test_lines_hold_scalars_and_lists(tmp_path):
    log = RunLog(tmp_path, 0, 10)
    log.write(1, 'heldout', {'loss': jnp.float32(0.1), 'accuracy_per_scale': jnp.array([0.5, 1.0])})
    log.close()
    (record,) = read_metrics(tmp_path, 'heldout')
    assert record['accuracy_per_scale'] == [0.5, 1.0]
    assert jnp.float32(record['loss']) == jnp.float32(0.1)  # float32 survives the text exactly
    assert read_metrics(tmp_path, 'train') == []
    (events,) = (tmp_path / 'tensorboard').iterdir()
    for name in (b'loss', b'accuracy_per_scale/00', b'accuracy_per_scale/01'):
        assert events.read_bytes().count(b'heldout/' + name) == 1


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    write_run(tmp_path, 0, 7)
    with (tmp_path / FILE_NAME).open('a') as file:
        file.write('{"step": 8, "split": "tr')  # cut short by a kill
    write_run(tmp_path, 5, 9)
    steps = [record['step'] for record in read_metrics(tmp_path)]
    assert steps == list(range(1, 10))


def test_a_disk_that_is_full_for_tensorboard_alone_does_not_hang_the_run(tmp_path, monkeypatch):
    log = RunLog(tmp_path, 0, 10)
    full = open('/dev/full', 'wb', buffering=1000)  # noqa: SIM115
    monkeypatch.setattr(log._board._writer._py_recordio_writer, '_writer', full)
    with pytest.raises(OSError, match='No space left'):
        for step in range(1000):
            log.write(step, 'train', {'loss': jnp.float32(1)})
    log.close()


@pytest.mark.parametrize(
    'line', [b'[]', b'null', b'3', b'{"step": 2}', b'{"step": "2", "split": "train"}', b'\xff\xfe',
             b'[' * 100_000, b'{"step": 2, "sp\0it": "train"}',
             '{"step": 2, "split": "train"}'.encode('utf-16'),
             b'{"step": true, "split": "train"}',
             b'{"step": 2, "split": "train", "loss": null}',
             b'{"step": 2, "split": "train", "loss": "1"}',
             b'{"step": 2, "split": "train", "loss": [1]}',
             b'{"step": 2, "split": "heldout", "accuracy_per_scale": 1}',
             b'{"step": 2, "split": "heldout", "accuracy_per_scale": [[1]]}'],
)  # fmt: skip
@pytest.mark.parametrize('end', [b'\n', b''])
def test_a_damaged_line_is_named(tmp_path, line, end):
    write_run(tmp_path, 0, 2)
    path = tmp_path / FILE_NAME
    text = path.read_bytes()
    path.write_bytes(text + line + end)
    if line.startswith(b'{') and not end:  # the end of a line that a kill cut short
        assert len(read_metrics(tmp_path)) == 2
        return
    with pytest.raises(UserError, match='metrics.jsonl line 3 is damaged') as caught:
        RunLog(tmp_path, 2, 10)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 400
    assert path.read_bytes() == text + line + end


def test_metrics_that_are_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / FILE_NAME)
    with pytest.raises(UserError, match='metrics.jsonl: is a pipe or device'):
        RunLog(tmp_path, 2, 10)


def test_zeros_after_the_last_line_are_what_a_power_cut_leaves(tmp_path):
    write_run(tmp_path, 0, 2)
    with (tmp_path / FILE_NAME).open('ab') as file:
        file.write(bytes(300))
    write_run(tmp_path, 2, 3)
    assert [record['step'] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_run_that_starts_over_drops_all_lines(tmp_path):
    for _ in range(2):  # the first was killed before its first checkpoint
        log = RunLog(tmp_path, 0, 10)
        log.write(0, 'heldout', {'loss': jnp.float32(0.5)})
        log.close()
    assert [record['step'] for record in read_metrics(tmp_path, 'heldout')] == [0]


def test_plots(tmp_path):
    assert plot_losses(tmp_path) is None
    write_run(tmp_path, 0, 3)
    held_out = {
        'step': 3,
        'split': 'heldout',
        'loss': 0.5,
        'accuracy_per_scale': [0.6, 0.7],
        'majority_rate_per_scale': [0.5, 0.5],
    }
    with (tmp_path / FILE_NAME).open('a') as file:
        file.write(json.dumps({'step': 4, 'split': 'train', 'loss': float('nan')}) + '\n')
        file.write(json.dumps(held_out) + '\n')
    assert Image.open(plot_losses(tmp_path)).size == (1000, 400)
    adversarial = {'step': 5, 'split': 'train', 'adversarial_weight': 0.3, 'discriminator': 0.0}
    with (tmp_path / FILE_NAME).open('a') as file:
        file.write(json.dumps(adversarial) + '\n')
    assert Image.open(plot_losses(tmp_path)).size == (1500, 400)


def spikes(losses):
    """Index of each spike -> the recent level below it."""
    detector = SpikeDetector()
    levels = {i: detector.update(loss) for i, loss in enumerate(losses)}
    return {i: level for i, level in levels.items() if level is not None}


def noisy(count, seed=0):
    return 0.5 + 0.01 * np.random.default_rng(seed).standard_normal(count)


def test_noise_and_a_falling_loss_are_no_spikes():
    assert spikes(noisy(2000)) == {}
    assert spikes(noisy(500) + np.exp(-np.arange(500) / 50)) == {}
    assert spikes([0.5] * 50 + [0.505] * 50) == {}  # however steady the loss was before


@pytest.mark.parametrize('height', [0.65, 3.0, 1e30])
def test_a_spike_is_reported_with_the_level_below_it(height):
    losses = noisy(300)
    losses[[150, 151, 200]] = height
    found = spikes(losses)
    assert sorted(found) == [150, 151, 200]  # the first hides neither the second nor the third
    np.testing.assert_allclose(list(found.values()), 0.5, atol=0.01)


def test_a_loss_that_stays_up_becomes_the_level():
    found = spikes(np.concatenate([noisy(100), 1 + noisy(200)]))
    assert 100 in found and max(found) < 160


def test_the_first_losses_and_those_that_are_not_finite_are_no_spikes():
    assert spikes([0.5] * (MIN_LOSSES - 1) + [5.0]) == {}
    assert spikes([0.5] * MIN_LOSSES + [np.nan, np.inf, 5.0]) == {MIN_LOSSES + 2: 0.5}
