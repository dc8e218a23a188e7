"""The run's own record: appended, cut back on resume, plotted."""

import json

import jax.numpy as jnp
from PIL import Image

from infinity_jax.training.metrics import FILE_NAME, RunLog, plot_losses, read_metrics


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
    assert any((tmp_path / 'tensorboard').iterdir())


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    write_run(tmp_path, 0, 7)
    with (tmp_path / FILE_NAME).open('a') as file:
        file.write('{"step": 8, "split": "tr')  # cut short by a kill
    write_run(tmp_path, 5, 9)
    steps = [record['step'] for record in read_metrics(tmp_path)]
    assert steps == list(range(1, 10))


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
    game = {'step': 5, 'split': 'train', 'adversarial_weight': 0.3, 'discriminator': 0.0}
    with (tmp_path / FILE_NAME).open('a') as file:
        file.write(json.dumps(game) + '\n')
    assert Image.open(plot_losses(tmp_path)).size == (1500, 400)
