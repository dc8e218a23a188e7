"""The folder of compiled programs, where it cannot be written or is not known."""

import pathlib

import jax
import pytest

from infinity_jax.runtime.compile_cache import use_compile_cache, user_cache_folder


@pytest.fixture
def no_other_folder(monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    yield
    jax.config.update('jax_compilation_cache_dir', before)


def test_a_cache_that_cannot_be_written_is_one_line(no_other_folder, monkeypatch, capsys):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv('XDG_CACHE_HOME', '/dev/null')
    use_compile_cache()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('compiled programs are not cached ([Errno 20] Not a directory')
    assert 'set JAX_COMPILATION_CACHE_DIR' in line
    assert jax.config.jax_compilation_cache_dir == before


def test_a_user_without_a_home(no_other_folder, monkeypatch, capsys):
    def no_home():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(pathlib.Path, 'home', no_home)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    with pytest.raises(FileNotFoundError, match='XDG_CACHE_HOME'):
        user_cache_folder()
    use_compile_cache()
    assert 'no home folder' in capsys.readouterr().err


def test_the_users_folder(no_other_folder, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'infinity_jax')
    assert list((tmp_path / 'infinity_jax').iterdir()) == []
