"""Model folders by name: a repository is looked at before gigabytes are fetched."""

import fnmatch
import json

import huggingface_hub
import pytest
from helpers.models import model_of
from helpers.paths import VOCABULARY
from helpers.tiny import TOKENIZER, tokenizer_variables

from infinity_jax.errors import UserError
from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.weights.fetch import fetch_model
from infinity_jax.weights.model_folder import FORMAT, load_model, save_model

POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4407000000\n'
# Of a model folder of ours, and of folders that may stand next to it.
OURS = (
    'config.json', 'transformer.safetensors', 'transformer-00001-of-00002.safetensors',
    'transformer.safetensors.index.json', 'tokenizer.safetensors', 'text_encoder/config.json',
    'text_encoder/model-00001-of-00002.safetensors', 'text_encoder/model.safetensors.index.json',
    'text_encoder/tokenizer.json', 'text_encoder/spiece.model',
)  # fmt: skip
OTHERS = (
    'infinity_2b_reg.pth', 'infinity_8b_weights/00000-of-00004.safetensors',
    'checkpoints/global_step_1/optimizer.safetensors', 'old/transformer.safetensors',
    'infinity_8b_weights/model.safetensors.index.json', 'README.md',
)  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository whose downloads are recorded: (folder, list of the patterns asked for)."""
    asked = []

    def download(name, allow_patterns, **_):
        asked.append(tuple(allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    monkeypatch.setattr(huggingface_hub, 'list_repo_files', lambda name, **_: list(OTHERS))
    return tmp_path, asked


@pytest.mark.parametrize('config', [None, {'model_type': 't5'}, {'format': 'other'}])
def test_a_repository_of_another_layout_is_refused_after_its_config(hub, config):
    folder, asked = hub
    if config is not None:
        (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match='no model folder of infinity_jax') as caught:
        fetch_model('FoundationVision/Infinity')
    assert asked == [('config.json',)]
    message = str(caught.value)
    assert 'convert from-torch --transformer infinity_2b_reg.pth --tokenizer FILE' in message
    assert '\n' not in message


def test_a_model_folder_is_fetched_without_what_stands_next_to_it(hub):
    folder, asked = hub
    (folder / 'config.json').write_text(json.dumps({'format': FORMAT}))
    assert fetch_model('org/name') == folder
    first, patterns = asked
    assert first == ('config.json',)
    fetched = [n for n in (*OURS, *OTHERS) if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    assert fetched == list(OURS)


def test_a_local_folder_is_not_looked_up(hub, tmp_path):
    _, asked = hub
    assert fetch_model(tmp_path) == tmp_path and asked == []


def test_a_torch_file_in_the_place_of_a_folder_is_told_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', None)
    monkeypatch.chdir(tmp_path)
    for name in ('infinity_2b_reg.pth', 'weights/infinity_2b_reg.pth'):
        with pytest.raises(UserError, match=r'infinity_2b_reg\.pth: no such file'):
            fetch_model(name)
    path = tmp_path / 'infinity_2b_reg.pth'
    path.write_bytes(b'PK')
    with pytest.raises(UserError, match='a file; wanted a model folder') as caught:
        load_model(fetch_model(str(path)))
    assert 'convert from-torch --transformer infinity_2b_reg.pth' in str(caught.value)
    (tmp_path / 'infinity_vae_d32reg.pth').write_bytes(b'PK')
    with pytest.raises(UserError, match='no config.json there') as caught:
        load_model(tmp_path)
    command = '--transformer infinity_2b_reg.pth --tokenizer infinity_vae_d32reg.pth'
    assert command in str(caught.value)


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.safetensors'])
def test_git_lfs_pointers_are_named(tmp_path, name):
    params = tokenizer_variables()['params']
    save_model(tmp_path / 'm', model_of(tokenizer_config=TOKENIZER, tokenizer_params=params))
    (tmp_path / 'm' / name).write_text(POINTER)
    with pytest.raises(UserError, match=f'{name}: a Git-LFS pointer.*run git lfs pull'):
        load_model(tmp_path / 'm')


@pytest.mark.parametrize('name', ['tokenizer.json', 'spiece.model'])
def test_a_vocabulary_that_is_a_pointer_is_named(tmp_path, name):
    for path in VOCABULARY.glob('*.json'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(UserError, match=f'{name}: a Git-LFS pointer'):
        TextTokenizer.from_folder(tmp_path)
