"""Files and folders that appear whole or not at all."""

import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from infinity_jax.runtime import atomic_write
from infinity_jax.runtime.atomic_write import atomic_file, atomic_folder, previous_folder


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / 'new' / 'a.txt'
    with atomic_file(path) as temporary:
        temporary.write_text('one')
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == 'one'
    with atomic_file(path) as temporary:
        temporary.write_text('two')
        assert path.read_text() == 'one'
    assert path.read_text() == 'two' and os.listdir(path.parent) == ['a.txt']


@pytest.mark.parametrize('written', [False, True])
def test_an_error_leaves_the_old_file_alone(tmp_path, written):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(OSError, match='full'), atomic_file(path) as temporary:
        if written:
            temporary.write_text('ne')
        raise OSError('full')
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']


def test_a_process_killed_while_it_writes_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    code = (
        'import os, signal, sys\n'
        'from infinity_jax.runtime.atomic_write import atomic_file\n'
        'with atomic_file(sys.argv[1]) as temporary:\n'
        '    temporary.write_text("ne")\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    assert subprocess.run([sys.executable, '-c', code, path]).returncode == -signal.SIGKILL
    assert path.read_text() == 'old'


def fill(folder: pathlib.Path, text: str, **options) -> None:
    with atomic_folder(folder, **options) as temporary:
        (temporary / 'inner').mkdir()
        (temporary / 'inner' / 'a.txt').write_text(text)


def test_a_folder_replaces_the_old_one(tmp_path):
    folder = tmp_path / 'new' / 'model'
    fill(folder, 'one')
    (folder / 'surplus').touch()
    fill(folder, 'two')
    assert (folder / 'inner' / 'a.txt').read_text() == 'two'
    assert os.listdir(folder) == ['inner'] and os.listdir(folder.parent) == ['model']


def test_an_error_leaves_the_old_folder_alone(tmp_path):
    fill(tmp_path / 'model', 'one')
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / 'model'):
        raise RuntimeError
    assert (tmp_path / 'model' / 'inner' / 'a.txt').read_text() == 'one'
    assert os.listdir(tmp_path) == ['model']


def test_a_stop_between_the_renames_keeps_the_old_folder(tmp_path, monkeypatch):
    folder, rename = tmp_path / 'model', os.rename
    fill(folder, 'one')

    def stop_at_second(source, target):
        if pathlib.Path(target) == folder:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, 'rename', stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        fill(folder, 'two')
    monkeypatch.undo()
    assert not folder.exists()
    assert (previous_folder(folder) / 'inner' / 'a.txt').read_text() == 'one'
    fill(folder, 'three')
    assert os.listdir(tmp_path) == ['model']


def test_of_two_processes_that_make_the_same_folder_the_first_wins(tmp_path):
    folder = tmp_path / 'index'
    with atomic_folder(folder, keep_existing=True) as temporary:
        (temporary / 'a.txt').write_text('second')
        fill(folder, 'first', keep_existing=True)
    assert (folder / 'inner' / 'a.txt').read_text() == 'first'
    assert os.listdir(tmp_path) == ['index']


def test_a_folder_that_cannot_be_renamed_is_an_error(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError('full')

    monkeypatch.setattr(os, 'rename', refuse)
    with pytest.raises(OSError, match='full'):
        fill(tmp_path / 'index', 'one', keep_existing=True)
    assert not os.listdir(tmp_path)


def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_is_removed_at_the_next_save(tmp_path):
    code = (
        'import os, pathlib, signal, sys\n'
        'from infinity_jax.runtime.atomic_write import atomic_folder\n'
        'with atomic_folder(pathlib.Path(sys.argv[1])) as temporary:\n'
        '    (temporary / "weights").write_text("half")\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    folder = tmp_path / 'model'
    for _ in range(2):  # the second run removes what the first left
        killed = subprocess.run([sys.executable, '-c', code, folder])
        assert killed.returncode == -signal.SIGKILL
        assert len(os.listdir(tmp_path)) == 1
    (tmp_path / f'.model.saving-{gone()}').mkdir()  # as version 0.1 called it
    others = {
        f'.model.saving-{os.getpid()}',  # a process that lives
        f'.other.saving-{gone()}',  # of another model
        f'.model.00000000-{gone()}-0123456789ab.partial',  # of another machine
        '.model.saving-mine',
    }
    for name in others:
        (tmp_path / name).mkdir()
    fill(folder, 'whole')
    assert set(os.listdir(tmp_path)) == {'model', *others}


def test_a_save_under_way_in_another_place_is_left_alone(tmp_path):
    with atomic_folder(tmp_path / 'model') as temporary:
        atomic_write._remove_stale.cache_clear()
        fill(tmp_path / 'model', 'first')
        assert temporary.is_dir()
    assert os.listdir(tmp_path) == ['model']


def test_files_are_flushed_as_windows_wants_it(tmp_path, monkeypatch):
    flushed = []

    def fsync(number):
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, 'Bad file descriptor')
        flushed.append(number)

    monkeypatch.setattr(os, 'fsync', fsync)
    with atomic_file(tmp_path / 'a.txt') as temporary:
        temporary.write_text('one')
    fill(tmp_path / 'model', 'one')
    assert len(flushed) == 2 and (tmp_path / 'a.txt').read_text() == 'one'


def test_a_copy_of_a_read_only_file_is_flushed_too(tmp_path, monkeypatch):
    real = open

    def refuse_writing(path, mode='r', *rest):
        if '+' in mode:
            raise PermissionError(errno.EACCES, 'Permission denied')
        return real(path, mode, *rest)

    monkeypatch.setattr('builtins.open', refuse_writing)  # root may write read-only files
    with atomic_file(tmp_path / 'a.txt') as temporary:
        temporary.write_text('one')
    assert (tmp_path / 'a.txt').exists()
