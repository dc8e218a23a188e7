"""The lock on a folder of a store; two caches play two machines."""

import json
import time

import fsspec
import pytest
from helpers.store import contents, memory_store

from infinity_jax.errors import UserError
from infinity_jax.runtime import remote_lock
from infinity_jax.runtime.remote_lock import NAME, FolderLock

store = pytest.fixture(memory_store)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(remote_lock, 'BEAT', 0.02)
    monkeypatch.setattr(remote_lock, 'PATIENCE', 0.5)


@pytest.fixture
def machines(store, tmp_path):
    return [FolderLock(f'{store}/run', tmp_path / name / 'run') for name in ('here', 'there')]


def test_a_machine_that_works_on_a_run_keeps_others_out(machines, capsys):
    here, there = machines
    with here.held():
        with pytest.raises(UserError, match='works on this run; end it there'), there.held():
            pass
        here.check()
    with there.held():  # released
        assert 'looks for' in capsys.readouterr().out
    assert contents(here.url) == {}


def test_a_second_process_of_a_machine_is_refused_at_once(store, tmp_path):
    first, second = (FolderLock(f'{store}/run', tmp_path / 'run') for _ in range(2))
    with first.held():
        with pytest.raises(UserError, match='another process of this machine'), second.held():
            pass
    with second.held():
        pass


def killed(lock):
    """Leaves the file of a holder that ended without a word."""
    lock._write()


def test_a_killed_run_goes_on_at_once_on_its_machine(machines, capsys):
    killed(machines[0])
    with machines[0].held():
        assert 'looks for' not in capsys.readouterr().out


def test_a_killed_run_goes_on_elsewhere_after_a_while(machines, capsys):
    here, there = machines
    killed(here)
    start = time.monotonic()
    with there.held():
        assert time.monotonic() - start >= 0.5
        assert 'looks for' in capsys.readouterr().out
        with pytest.raises(UserError, match='has taken this run over.*nothing more is copied'):
            here.check()
        time.sleep(0.1)  # the beats go on
        assert json.loads(contents(here.url)[NAME])['owner'] == there.owner


def test_a_damaged_lock_is_none(machines):
    fsspec.filesystem('memory').pipe_file(f'{machines[0].url}/{NAME}', b'{')
    with machines[0].held():
        pass
