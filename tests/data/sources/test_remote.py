"""Sources in a store give the records of the same files on this machine."""

import fsspec
import numpy as np
import pytest
from helpers import data_folders
from helpers.store import memory_store, upload

from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.data.index import load_index
from infinity_jax.data.passed_over import PassedOver
from infinity_jax.data.stored_source import open_source
from infinity_jax.errors import UserError
from infinity_jax.runtime.remote import RemotePath

KINDS = {
    'folder': ('sidecar', {}),
    'imagefolder': ('imagefolder', {}),
    'jsonl': ('jsonl', {}),
    'parquet': ('parquet', {'text_field': 'caption'}),
    'sidecar': ('sidecar', {}),
    'tar': ('tar', {}),
}
store = pytest.fixture(memory_store)


def described(source, folder):
    passed_over = PassedOver()
    records = []
    for location in source.locations(passed_over):
        try:
            record = source.read(location)
            content = record.open_image().read()
        except Exception as error:  # broken records, with their reasons
            content, record = str(error).replace(str(folder), 'FOLDER'), None
        captions = record and record.captions
        records.append((location, source.record_name(location), captions, content))
    return records, passed_over.rows


@pytest.mark.parametrize('kind', KINDS)
def test_records_are_those_of_local_files(store, tmp_path, kind):
    maker, fields = KINDS[kind]
    folder = getattr(data_folders, f'{maker}_folder')(tmp_path / 'data')
    (folder / '.hidden').mkdir()
    (folder / '.hidden' / 'a.jpg').write_bytes(b'')
    upload(folder, f'{store}/data')
    local, remote = (
        open_source(SourceConfig(kind, str(path), **fields)) for path in (folder, f'{store}/data')
    )
    records, passed_over = described(local, folder)
    assert len(records) > 5
    found, also_passed_over = described(remote, RemotePath(f'{store}/data'))
    missing = lambda text: 'o such file' in str(text)  # the system words it in its own way
    assert [r[:3] if missing(r[3]) else r for r in found] == [
        r[:3] if missing(r[3]) else r for r in records
    ]
    assert also_passed_over == passed_over


def test_an_index_follows_the_content(store, tmp_path):
    folder = data_folders.tar_folder(tmp_path / 'data')
    source = open_source(SourceConfig('tar', upload(folder, f'{store}/data')))
    index = load_index(source, tmp_path / 'index')
    np.testing.assert_array_equal(np.unique(index.sizes), [64, 128])
    assert load_index(source, tmp_path / 'index').folder == index.folder
    system = fsspec.filesystem('memory')
    content = system.cat_file(f'{store}/data/000.tar')
    system.pipe_file(f'{store}/data/000.tar', content)
    assert load_index(source, tmp_path / 'index').folder != index.folder


@pytest.mark.parametrize('kind', ['arrow', 'features', 'tfds'])
def test_kinds_that_need_files_of_this_machine_say_so(kind):
    with pytest.raises(UserError, match=f'kind {kind} is s3://b/x, which only works.*parquet'):
        SourceConfig(kind, 's3://b/x')


def test_indexes_stay_on_this_machine():
    with pytest.raises(UserError, match='index_dir is gs://b/x, which only works on this machine'):
        DataConfig(index_dir='gs://b/x')


def test_a_folder_with_signs_of_patterns_in_its_name(store, tmp_path):
    folder = data_folders.tar_folder(tmp_path / 'data')
    source = open_source(SourceConfig('tar', upload(folder, f'{store}/a[1]*?')))
    assert list(source.locations())


def test_an_image_of_another_store_is_a_broken_record(store, tmp_path):
    (tmp_path / 'a.jsonl').write_text(data_folders.line('s3://other/a.jpg', text='x'))
    source = open_source(SourceConfig('jsonl', upload(tmp_path, f'{store}/data')))
    (location,) = source.locations()
    with pytest.raises(Exception, match="image_path is 's3://other/a.jpg'"):
        source.read(location)
