"""Model folders, exports and images in a store, and their copies on this machine."""

import fsspec
import numpy as np
import pytest
from fsspec.registry import known_implementations
from helpers.finetuning import save
from helpers.models import assert_same
from helpers.paths import VOCABULARY
from helpers.store import contents, memory_store, upload
from PIL import Image

from infinity_jax.convert.exporting import to_torch_files
from infinity_jax.convert.importing import from_torch
from infinity_jax.errors import UserError
from infinity_jax.images import check_writable, save_image
from infinity_jax.runtime.remote_copy import cache_folder, local_copy, local_output
from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.weights.fetch import fetch_model
from infinity_jax.weights.model_folder import load_model

store = pytest.fixture(memory_store)


def test_a_model_is_saved_and_read(store, tmp_path):
    save(tmp_path / 'm')
    fsspec.filesystem('memory').pipe_file(f'{store}/m/transformer-of-before.safetensors', b'')
    save(f'{store}/m')
    names = {p.relative_to(tmp_path / 'm').as_posix() for p in (tmp_path / 'm').rglob('*.*')}
    assert set(contents(f'{store}/m')) == names
    assert_same(
        load_model(f'{store}/m').tokenizer_params, load_model(tmp_path / 'm').tokenizer_params
    )
    assert fetch_model(f'{store}/m').name == 'm'


def test_a_run_in_the_place_of_a_model_names_its_model(store, tmp_path):
    run = '{"task": "t2i", "run_dir": "r"}'
    (tmp_path / 'r').mkdir()
    (tmp_path / 'r' / 'config.json').write_text(run)
    upload(tmp_path / 'r', f'{store}/r')
    fsspec.filesystem('memory').pipe_file(f'{store}/r/checkpoints/1/a', b'large')
    for name in (f'{store}/r', str(tmp_path / 'r')):
        with pytest.raises(UserError, match=f'{name}: a run folder; wanted .* {name}/model'):
            load_model(fetch_model(name))
    assert not list(cache_folder('copies', f'{store}/r').rglob('checkpoints'))
    with pytest.raises(UserError, match='checkpoints: no model, but 1/a; name the folder'):
        fetch_model(f'{store}/r/checkpoints')


def test_an_export_replaces_one_of_another_format(store, tmp_path):
    save(tmp_path / 'm')
    fsspec.filesystem('memory').pipe_file(f'{store}/out/notes.txt', b'kept')
    to_torch_files(tmp_path / 'm', f'{store}/out', file_format='safetensors')
    to_torch_files(tmp_path / 'm', f'{store}/out')
    names = [name for name in contents(f'{store}/out') if '/' not in name]
    assert names == ['infinity_jax.json', 'notes.txt', 'tokenizer.pth', 'transformer.pth']


def test_an_export_and_its_import(store, tmp_path):
    save(tmp_path / 'm')
    local = to_torch_files(tmp_path / 'm', tmp_path / 'out')
    remote = to_torch_files(upload(tmp_path / 'm', f'{store}/m'), f'{store}/out')
    assert list(map(str, remote)) == [
        f'{store}/out/{path.relative_to(tmp_path / "out").as_posix()}' for path in local
    ]
    found = contents(f'{store}/out')
    assert all(
        found[path.relative_to(tmp_path / 'out').as_posix()] == path.read_bytes() for path in local
    )
    parts = {'transformer': 'transformer.pth', 'tokenizer': 'tokenizer.pth'}
    configs = from_torch(
        **{part: f'{store}/out/{name}' for part, name in parts.items()},
        text_encoder=f'{store}/out/text_encoder',
        out=f'{store}/again',
    )
    assert configs.text is not None
    assert_same(
        load_model(f'{store}/again').transformer_params,
        load_model(tmp_path / 'm').transformer_params,
    )
    with pytest.raises(UserError, match='exists and is not a model folder'):
        from_torch(tokenizer=f'{store}/out/tokenizer.pth', out=f'{store}/out')


def test_only_changed_files_are_copied_again(store, tmp_path):
    system = fsspec.filesystem('memory')
    for name in ('a', 'b/c', 'd'):
        system.pipe_file(f'{store}/m/{name}', name.encode())
    folder = local_copy(f'{store}/m')
    (folder / 'a').write_text('not copied again')
    system.pipe_file(f'{store}/m/b/c', b'new')
    system.rm_file(f'{store}/m/d')
    assert local_copy(f'{store}/m/') == folder
    assert {p.name: p.read_text() for p in folder.rglob('*') if p.is_file()} == {
        'a': 'not copied again',
        'c': 'new',
    }
    assert local_copy(f'{store}/m/a').read_text() == 'a'
    assert folder.is_relative_to(cache_folder('copies', f'{store}/m'))


def test_only_a_tokenizer_is_copied_for_a_tokenizer(store):
    upload(VOCABULARY, f'{store}/t5')
    fsspec.filesystem('memory').pipe_file(f'{store}/t5/model.safetensors', b'large')
    assert TextTokenizer.from_folder(f'{store}/t5').vocab_size > 1000
    copied = cache_folder('copies', f'{store}/t5') / 't5'
    assert not (copied / 'model.safetensors').exists()


def test_images_go_to_a_store(store):
    image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    check_writable(f'{store}/images/a.png')
    for name in ('a.png', 'b.jpg'):
        save_image(f'{store}/images/{name}', image, {'prompt': 'x'})
    assert set(contents(f'{store}/images')) == {'a.png', 'b.jpg'}


def test_nothing_is_copied_after_an_error(store):
    with pytest.raises(UserError, match='stopped'), local_output(f'{store}/out') as out:
        out.mkdir()
        (out / 'half').write_text('')
        raise UserError('stopped')
    assert contents(store) == {}


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('s3://bucket/m', 's3://bucket/m: needs the package s3fs: pip install s3fs'),
        ('memory://none/m', 'memory://none/m: no such file or folder'),
        ('gs:/b/m', 'a path is gs:/b/m; wanted gs://BUCKET/PATH'),
        ('s3:///', 'a path is s3:///; wanted s3://BUCKET/PATH'),
        ('file:///tmp/m', 'wanted a path, or one of az://, gs://, s3://; a folder of this machine'),
    ],
)
def test_a_store_that_cannot_be_read_is_one_line(path, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    absent = {'class': 'no_such_package.S3', 'err': 'Install s3fs'}
    monkeypatch.setitem(known_implementations, 's3', absent)
    with pytest.raises(UserError, match=message) as error:
        load_model(path)
    assert '\n' not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_name_that_leaves_the_folder_is_refused(store):
    fsspec.filesystem('memory').pipe_file(f'{store}/m/../../x', b'')
    with pytest.raises(UserError, match='wanted names without'):
        local_copy(f'{store}/m')
