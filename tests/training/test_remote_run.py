"""Runs whose folder is in a store: fsspec's store in the memory of the process."""

import json
import shutil

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.store import contents, memory_store

from infinity_jax.errors import UserError
from infinity_jax.training.checkpoint import Checkpoints
from infinity_jax.training.metrics import RunLog
from infinity_jax.training.remote_run import RemoteRun, run_copy, run_folder
from infinity_jax.training.run_folder import run_named

store = pytest.fixture(memory_store)


def train(url, steps, start=0):
    """Saves a number after each step; returns the state that it began with."""
    with run_folder(url) as folder:
        checkpoints = Checkpoints(folder, keep=2)
        shape = jax.eval_shape(lambda: {'w': jnp.zeros(3)})
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shape
        )
        begun = checkpoints.restore_newest(abstract, print)
        first = checkpoints.latest_step or 0
        log = RunLog(folder, first, steps)
        for step in range(first + 1, steps + 1):
            log.write(step, 'train', {'loss': step})
            checkpoints.save(step, {'w': jnp.full(3, float(step))})
        checkpoints.wait()
        log.close()
        checkpoints.close()
    return None if begun is None else np.asarray(begun['w']).tolist()


def test_a_run_goes_on_from_the_store_alone(store, tmp_path, monkeypatch):
    assert train(f'{store}/run', 3) is None
    names = contents(f'{store}/run')
    assert {name.split('/')[1] for name in names if name.startswith('checkpoints')} == {'2', '3'}
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'another machine'))
    assert train(f'{store}/run', 4) == [3.0, 3.0, 3.0]
    lines = contents(f'{store}/run')['metrics.jsonl'].decode().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [1, 2, 3, 4]


def test_a_checkpoint_without_hashes_is_unfinished(store, capsys):
    train(f'{store}/run', 3)
    fsspec.filesystem('memory').rm_file(f'{store}/run/checkpoints/3/hashes.json')
    assert train(f'{store}/run', 3) == [2.0, 2.0, 2.0]


def test_a_damaged_checkpoint_of_a_store_is_passed_over(store, capsys):
    train(f'{store}/run', 3)
    name = max(n for n in contents(f'{store}/run') if n.startswith('checkpoints/3/state'))
    fsspec.filesystem('memory').pipe_file(f'{store}/run/{name}', b'damaged')
    assert train(f'{store}/run', 3) == [2.0, 2.0, 2.0]
    assert 'is damaged' in capsys.readouterr().out


def test_files_are_sent_only_when_they_are_new(store, monkeypatch):
    with run_folder(f'{store}/run') as folder:
        run = RemoteRun.of(folder)
        (run.folder / 'samples').mkdir()
        (run.folder / 'samples' / 'a.png').write_bytes(b'a')
    fsspec.filesystem('memory').pipe_file(f'{store}/run/samples/a.png', b'kept')
    with run_folder(f'{store}/run') as folder:
        assert (RemoteRun.of(folder).folder / 'samples' / 'a.png').read_bytes() == b'kept'
        (RemoteRun.of(folder).folder / 'b.txt').write_bytes(b'b')
    assert contents(f'{store}/run') == {'samples/a.png': b'kept', 'b.txt': b'b'}


def test_what_the_last_copy_lacks_is_set_aside(store, monkeypatch, capsys):
    def fail(*args):
        raise OSError('no such bucket')

    with run_folder(f'{store}/run') as folder:
        (RemoteRun.of(folder).folder / 'model').mkdir()
        (RemoteRun.of(folder).folder / 'model' / 'a.txt').write_text('weights', encoding='utf-8')
        failing = monkeypatch.context()
        with pytest.raises(OSError, match='bucket'), failing as patch:
            patch.setattr('infinity_jax.training.remote_run.copy_to', fail)
            RemoteRun.of(folder).send()
        local = RemoteRun.of(folder).folder
        shutil.copytree(local, local.with_name('copy'))
    shutil.rmtree(local)
    local.with_name('copy').rename(local)  # as if the copy at the end had failed as well
    fsspec.filesystem('memory').rm(f'{store}/run', recursive=True)
    capsys.readouterr()
    with run_folder(f'{store}/run') as folder:
        aside = local.with_name(f'{local.name}.unsent')
        assert 'model was not copied to the store' in capsys.readouterr().out
        assert (aside / 'model' / 'a.txt').read_text(encoding='utf-8') == 'weights'
        assert not (local / 'model').exists()


def test_a_finished_run_that_is_started_again_has_nothing_unsent(store, capsys):
    with run_folder(f'{store}/run') as folder:
        (RemoteRun.of(folder).folder / 'model').mkdir()
        (RemoteRun.of(folder).folder / 'model' / 'a.txt').write_bytes(b'weights')
    with run_folder(f'{store}/run') as folder:
        assert (RemoteRun.of(folder).folder / 'model' / 'a.txt').read_bytes() == b'weights'
    assert 'not copied' not in capsys.readouterr().out


def test_shards_of_a_replaced_model_are_deleted_in_the_store(store):
    with run_folder(f'{store}/run') as folder:
        model = RemoteRun.of(folder).folder / 'model'
        model.mkdir()
        for name in ('config.json', 'transformer-00001-of-00002.safetensors'):
            (model / name).write_bytes(b'old')
    with run_folder(f'{store}/run') as folder:
        model = RemoteRun.of(folder).folder / 'model'
        (model / 'transformer-00001-of-00002.safetensors').unlink()
        (model / 'transformer.safetensors').write_bytes(b'new')
    assert contents(f'{store}/run') == {
        'model/config.json': b'old',
        'model/transformer.safetensors': b'new',
    }


def test_a_store_that_cannot_be_written_is_named_as_such(store, monkeypatch):
    def fail(*args):
        raise OSError(5, 'Access Denied')

    monkeypatch.setattr('infinity_jax.training.remote_run.copy_to', fail)
    with pytest.raises(UserError, match='/run: cannot be written.*Access Denied.*credentials'):
        train(f'{store}/run', 1)


def test_an_error_of_the_run_still_sends_its_files(store):
    with pytest.raises(UserError, match='bad loss'), run_folder(f'{store}/run') as folder:
        (RemoteRun.of(folder).folder / 'metrics.jsonl').write_text('{}\n')
        raise UserError('bad loss')
    assert list(contents(f'{store}/run')) == ['metrics.jsonl']


def test_several_processes_are_refused(store, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(UserError, match='2 processes save together.*mount the bucket'):
        with run_folder(f'{store}/run'):
            pass


def test_one_checkpoint_of_a_run_is_copied(store):
    train(f'{store}/run', 3)
    fsspec.filesystem('memory').pipe_file(f'{store}/run/config.json', b'{}')
    folder, step = run_named(f'{store}/run')
    assert (step, [p.name for p in (folder / 'checkpoints').iterdir()]) == (None, ['3'])
    folder, step = run_named(f'{store}/run/checkpoints/2/')
    assert (step, [p.name for p in (folder / 'checkpoints').iterdir()]) == (2, ['2'])
    assert (folder / 'config.json').read_text() == '{}'
    shutil.rmtree(folder)
    with pytest.raises(UserError, match='no such file or folder'):
        run_copy(f'{store}/other')


def test_a_local_run_folder_is_used_as_it_is(tmp_path):
    with run_folder(str(tmp_path)) as folder:
        assert folder == str(tmp_path)
    assert RemoteRun.of(tmp_path) is None
