"""Names become folders: local ones, the hub's cache, and clear errors; no network anywhere."""

import os
import pathlib
import subprocess
import sys

import huggingface_hub
import huggingface_hub.constants
import pytest

from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import local_folder

COMMIT = '0123456789abcdef0123456789abcdef01234567'


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


@pytest.fixture
def cache(tmp_path):
    """A hub cache that holds org/name, laid out by hand."""
    repository = tmp_path / 'models--org--name'
    snapshot = repository / 'snapshots' / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / 'config.json').write_text('{}')
    (repository / 'refs').mkdir()
    for branch in ('main', 'small'):
        (repository / 'refs' / branch).write_text(COMMIT)
    return tmp_path


def test_a_folder_that_exists_wins(cache, monkeypatch, tmp_path):
    (tmp_path / 'org' / 'name').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_folder('org/name', cache_dir=cache) == pathlib.Path('org/name')
    assert local_folder(tmp_path) == tmp_path
    assert local_folder('.') == pathlib.Path() and local_folder('/') == pathlib.Path('/')


def test_a_save_cut_off_between_its_renames_is_no_repository(tmp_path):
    (tmp_path / '.model.previous').mkdir()
    assert local_folder(tmp_path / 'model') == tmp_path / '.model.previous'


@pytest.mark.parametrize('revision', [None, 'small', COMMIT])
def test_what_is_in_the_cache_needs_no_network(cache, offline, revision):
    folder = local_folder('org/name', revision, cache)
    assert folder == cache / 'models--org--name' / 'snapshots' / COMMIT
    assert (folder / 'config.json').is_file()


def test_the_environment_decides_about_network_and_cache(cache):
    code = 'from infinity_jax.runtime.hub import local_folder; print(local_folder("org/name"))'
    environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'HF_HUB_CACHE': str(cache)}
    run = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip().endswith(COMMIT)


@pytest.mark.parametrize(
    ('name', 'revision'), [('org/other', None), ('org/name', 'large')], ids=str
)
def test_what_the_cache_lacks_is_one_line_that_says_so(cache, offline, name, revision):
    with pytest.raises(UserError, match='unset HF_HUB_OFFLINE') as caught:
        local_folder(name, revision, cache)
    message = str(caught.value)
    assert message.startswith(f'{name}: no such folder')
    assert f'revision {revision or "main"}' in message and '\n' not in message


def test_errors_of_the_hub_are_one_line(monkeypatch):
    asked = {}

    def refuse(name, **options):
        asked.update(options, name=name)
        raise huggingface_hub.errors.LocalEntryNotFoundError('401 Client Error.\n\nLog in.')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', refuse)
    with pytest.raises(UserError, match=r'401 Client Error. Log in.\); check the name') as caught:
        local_folder('org/name', 'v1', '/cache')
    assert '\n' not in str(caught.value)
    assert (asked['name'], asked['revision'], asked['cache_dir']) == ('org/name', 'v1', '/cache')
    assert '*.safetensors' in asked['allow_patterns'] and '*.pth' not in asked['allow_patterns']


@pytest.mark.parametrize('name', ['/nowhere', 'nowhere', './org/name', 'a/b/c', '../x', 'org/'])
def test_what_is_no_repository_name_is_never_looked_up(name, tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')  # beside which there is no x
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', None)
    with pytest.raises(UserError, match='no such folder; wanted a model folder'):
        local_folder(name)
