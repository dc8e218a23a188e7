"""The loop on a toy: resuming, SIGTERM, and the log."""

import dataclasses
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.data.batch import Batch
from infinity_jax.data.config import DataConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.preemption import Preempted, Terminated
from infinity_jax.sharding import MeshConfig, make_mesh, replicated
from infinity_jax.training import loop, state_memory
from infinity_jax.training.batches import check_batch
from infinity_jax.training.checkpoint import Checkpoints
from infinity_jax.training.config import RunConfig, init_key, step_key
from infinity_jax.training.metrics import RunLog, read_metrics
from infinity_jax.training.optimizer import OptimizerConfig, make_optimizer, new_state


def test_a_batch_splits_evenly_over_the_mesh():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    check_batch(types.SimpleNamespace(batch_size=16), mesh)
    with pytest.raises(UserError, match='batch_size 12 does not divide over data x fsdp = 8'):
        check_batch(types.SimpleNamespace(batch_size=12), mesh)


def test_every_host_has_its_own_share_of_a_batch(monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    check_batch(types.SimpleNamespace(batch_size=8), make_mesh(MeshConfig(data=2, tensor=4)))
    with pytest.raises(UserError, match='1 shares of a batch for 2 hosts'):
        check_batch(types.SimpleNamespace(batch_size=8), make_mesh(MeshConfig(data=1, tensor=8)))


def test_no_step_shares_its_key_with_the_start_or_another_step():
    keys = [init_key(3), *(step_key(3, step) for step in range(4)), step_key(4, 0)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


class Numbers:
    """Batches that hold nothing but their number."""

    def __init__(self):
        self.number = 0

    def move_to(self, number):
        self.number = number

    def __next__(self):
        self.number += 1
        return Batch(lengths_B=np.array([self.number - 1], np.float32))

    def close(self):
        pass


def terminate(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def run(folder, loss=lambda number: 1 / (1 + number), **changed):
    """Trains a toy whose loss follows from the batch's number; returns the names of its actions."""
    config = RunConfig(
        task='toy', run_dir=str(folder), steps=6, batch_size=1, data=DataConfig(),
        optimizer=OptimizerConfig(learning_rate=1.0), log_every=1, eval_every=2, sample_every=3,
        checkpoint_every=4, keep_checkpoints=9,
    )  # fmt: skip
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.steps)
    init = lambda _: jax.device_put(new_state({'w': jnp.zeros(1)}, optimizer), replicated(mesh))
    shapes = jax.eval_shape(init, 0)
    done = []

    def train_step(state, batch):
        number = batch.lengths_B.sum()
        metrics = {'loss': loss(number), 'bad_in_a_row': 0, 'learning_rate': 1.0}
        return state.replace(step=state.step + 1, params={'w': state.params['w'] + number}), metrics

    def evaluate(state):
        done.append(f'evaluate {int(state.step)}')
        return {'loss': state.params['w'].sum()}

    def sample(state, path):
        done.append(f'sample {int(state.step)}')
        path.touch()

    task = loop.Task(
        init=init,
        abstract_state=loop.with_shardings(
            shapes, jax.tree.map(lambda _: replicated(mesh), shapes)
        ),
        from_model=None,
        batches=Numbers(),
        train_step=train_step,
        step_flops=lambda _: 1.0,
        evaluate=evaluate,
        sample=sample,
        export=lambda state, _: done.append(f'export {int(state.step)}'),
    )
    fields = {
        name: changed.pop(name)
        for name in ('steps', 'log_every', 'eval_every', 'sample_every', 'first_sample')
        if name in changed
    }
    config = dataclasses.replace(config, **fields)
    try:
        loop.run(config, dataclasses.replace(task, **changed), mesh)
    except (Preempted, Terminated) as stop:
        done.append(str(stop))
    return done


def test_a_state_that_exceeds_the_memory_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(state_memory, 'free_bytes', lambda device: 7)
    fail = lambda key: pytest.fail('it was made')
    with pytest.raises(UserError, match='take .* GB of memory here, of which .* GB are free'):
        run(tmp_path, init=fail)


def test_a_share_of_the_state_is_compared_with_the_memory(monkeypatch):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp'))
    state = jax.ShapeDtypeStruct((8, 100), jnp.float32, sharding=split)  # 800 bytes per device
    monkeypatch.setattr(state_memory, 'free_bytes', lambda device: 8 * 800)
    state_memory.check_memory(state, mesh)
    monkeypatch.setattr(state_memory, 'free_bytes', lambda device: 8 * 800 - 1)
    with pytest.raises(UserError, match='config.mesh.fsdp'):
        state_memory.check_memory(state, mesh)
    monkeypatch.setattr(state_memory, 'free_bytes', lambda device: None)  # unknown
    state_memory.check_memory(state, mesh)


def saved(folder):
    return sorted(int(path.name) for path in (folder / 'checkpoints').iterdir())


def test_a_resumed_run_reads_the_batches_that_it_has_not_read(tmp_path, capsys):
    assert run(tmp_path, steps=4)[-1] == 'export 4'
    assert 'changed' not in capsys.readouterr().out
    run(tmp_path)
    assert 'changed since this run was last started: steps 4 -> 6\n' in capsys.readouterr().out
    assert [r['loss'] for r in read_metrics(tmp_path)] == pytest.approx(
        [1 / n for n in range(1, 7)]
    )
    held_out = [(r['step'], r['loss']) for r in read_metrics(tmp_path, 'heldout')]
    assert held_out == [(2, 1), (4, 6), (6, 15)]  # sums of the numbers below


@pytest.mark.parametrize(
    ('phase', 'at', 'kept', 'then'),
    [
        ('evaluate', 2, [2], ['sample 3', 'evaluate 4', 'evaluate 6', 'sample 6', 'export 6']),
        ('sample', 3, [3], ['evaluate 4', 'evaluate 6', 'sample 6', 'export 6']),
        ('evaluate', 6, [4, 6], ['evaluate 6', 'sample 6', 'export 6']),
        ('sample', 6, [4, 6], ['evaluate 6', 'sample 6', 'export 6']),
        ('export', 6, [4, 6], ['evaluate 6', 'sample 6', 'export 6']),
    ],
)
def test_sigterm_between_steps_is_reported_and_loses_nothing(tmp_path, phase, at, kept, then):
    def noticed(state, *path):
        if phase == 'sample':
            path[0].touch()
        if int(state.step) == at:
            terminate()
        return {'loss': state.params['w'].sum()}

    before = signal.getsignal(signal.SIGTERM)
    message = run(tmp_path, **{phase: noticed})[-1]
    assert signal.getsignal(signal.SIGTERM) == before
    if phase == 'export':
        assert message.startswith('stopped by SIGTERM while finishing; training is done and saved')
    else:
        assert message.startswith(f'stopped by SIGTERM after step {at}, saved in ')
    assert saved(tmp_path) == kept
    assert run(tmp_path) == then
    held_out = {r['step']: r['loss'] for r in read_metrics(tmp_path, 'heldout')}
    assert held_out[6] == 15 and len(read_metrics(tmp_path, 'heldout')) == len(held_out)


def test_sigterm_while_the_last_step_is_saved_is_heard(tmp_path, monkeypatch):
    looked = []

    def wait(checkpoints, inner=Checkpoints.wait):
        if looked == [3, 6]:
            terminate()
        inner(checkpoints)

    monkeypatch.setattr(Checkpoints, 'wait', wait)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail('nobody listened'))
    try:
        message = run(tmp_path, sample=lambda state, _: looked.append(int(state.step)))[-1]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert message.startswith('stopped by SIGTERM after step 6, saved in ')
    assert saved(tmp_path) == [4, 6]


def test_a_step_is_saved_before_what_else_is_due(tmp_path):
    def dies(state):
        if int(state.step) == 4:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, evaluate=dies)
    assert saved(tmp_path) == [4]


def test_a_first_sheet_of_samples_comes_early_and_the_expected_time_is_said(tmp_path, capsys):
    done = run(tmp_path, steps=30, log_every=10, eval_every=100, sample_every=100, first_sample=7)
    assert done == ['sample 7', 'evaluate 30', 'sample 30', 'export 30']
    said = [line for line in capsys.readouterr().err.splitlines() if 'more steps take' in line]
    assert len(said) == 1 and '10 more steps take about 0 seconds' in said[0]


@pytest.mark.parametrize('phase', ['save', 'evaluate', 'sample'])
def test_a_resume_evaluates_and_samples_as_was_due(tmp_path, phase, monkeypatch):
    """The run ends after the save of step 4, before or in the middle of what is due there."""
    due = {'eval_every': 4, 'sample_every': 4}
    undisturbed = run(tmp_path / 'undisturbed', **due)
    assert 'evaluate 4' in undisturbed and 'sample 4' in undisturbed

    def dies(state, *_):
        if int(state.step) == 4:
            raise KeyboardInterrupt
        return {'loss': state.params['w'].sum()}

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'run', **due, **{'evaluate' if phase == 'save' else phase: dies})
    again = run(tmp_path / 'run', **due)
    assert (
        again == undisturbed[undisturbed.index('sample 4' if phase == 'sample' else 'evaluate 4') :]
    )
    lines = [(tmp_path / name / 'metrics.jsonl').read_text() for name in ('undisturbed', 'run')]
    assert [line.split('step_sec')[0] for line in lines[0].splitlines()] == [
        line.split('step_sec')[0] for line in lines[1].splitlines()
    ]
    assert run(tmp_path / 'run', **due, steps=6)[0] == 'evaluate 6'  # once is enough


def test_a_full_disk_is_one_line_and_all_is_closed(tmp_path, monkeypatch):
    closed = []
    for owner in (Numbers, Checkpoints):
        close = lambda self, owner=owner, inner=owner.close: (closed.append(owner), inner(self))
        monkeypatch.setattr(owner, 'close', close)

    opened = RunLog.__init__

    def full(log, *arguments):
        opened(log, *arguments)
        log._file.close()
        log._file = open('/dev/full', 'a')  # noqa: SIM115 (every write fails)

    monkeypatch.setattr(RunLog, '__init__', full)
    with pytest.raises(UserError, match='run folder .* cannot be written: .*No space left'):
        run(tmp_path)
    assert closed == [Checkpoints, Numbers]


def test_a_full_disk_at_the_start_is_one_line(tmp_path):
    (tmp_path / 'tensorboard').write_text('a file where a folder is wanted')
    with pytest.raises(UserError, match='run folder .* cannot be written'):
        run(tmp_path)


def test_a_spike_is_logged_though_its_step_is_not_due(tmp_path, capsys):
    values = lambda number: 5.0 if number == 24 else 0.5
    run(tmp_path, values, steps=30, log_every=10, evaluate=lambda _: {})
    levels = {r['step']: r.get('loss_level') for r in read_metrics(tmp_path)}
    assert levels == {10: None, 20: None, 25: 0.5, 30: None}
    assert 'step 25: loss 5 is far above its recent level of 0.5' in capsys.readouterr().err


def test_a_resumed_run_finds_the_same_spikes(tmp_path):
    """The run is killed after its first spike, and resumed from a step before both."""
    values = lambda number: {24: 5.0, 27: 6.0}.get(int(number), 0.5 + 0.001 * int(number))
    settings = {'steps': 30, 'log_every': 10, 'eval_every': 100, 'sample_every': 100}

    def logged(name):
        return [(r['step'], r['loss'], r.get('loss_level')) for r in read_metrics(tmp_path / name)]

    run(tmp_path / 'undisturbed', values, **settings)

    def dies(number):
        if int(number) == 26:
            raise KeyboardInterrupt
        return values(number)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'run', dies, **settings)
    assert saved(tmp_path / 'run')[-1] == 24
    run(tmp_path / 'run', values, **settings)
    assert [step for step, _, level in logged('undisturbed') if level] == [25, 28]
    assert logged('run') == logged('undisturbed')
