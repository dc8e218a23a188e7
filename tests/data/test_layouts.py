"""Folders of unknown layout: the source that reads them, and hints for another kind."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.data_folders import (
    arrow_folder,
    encoded,
    imagefolder_folder,
    jsonl_folder,
    parquet_folder,
    sidecar_folder,
    tar_folder,
    tfds_folder,
)

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.layouts import guess_layout
from infinity_jax.data.records import BrokenRecord
from infinity_jax.data.stored_source import open_source
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping

MAKERS = {
    'arrow': (arrow_folder, {'text_field': 'caption'}),
    'imagefolder': (imagefolder_folder, {}),
    'jsonl': (jsonl_folder, {}),
    'parquet': (parquet_folder, {'text_field': 'caption'}),
    'sidecar': (sidecar_folder, {}),
    'tar': (tar_folder, {}),
    'tfds': (tfds_folder, {'text_field': 'label'}),
}


def first_records(source):
    """Reads the first two records of a source."""
    opened = open_source(from_mapping(SourceConfig, source))
    locations = list(opened.locations())
    return [opened.read(location) for location in locations[:2]]


@pytest.mark.parametrize('kind', MAKERS)
def test_a_layout_is_recognised_and_its_source_reads_it(kind, tmp_path):
    make, fields = MAKERS[kind]
    folder = make(tmp_path / 'data')
    guess = guess_layout(pathlib.Path(folder))
    assert guess.source == {'kind': kind, 'path': str(folder), **fields}
    for record in first_records(guess.source):
        assert record.captions.usable and record.open_image().read()


def folder_of(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


IMAGE = encoded(8, 8)


@pytest.mark.parametrize(('files', 'fields'), [
    ({'a.jsonl': json.dumps({'file_name': 'a.png', 'caption': 'x'}), 'a.png': IMAGE},
     {'kind': 'jsonl', 'image_field': 'file_name', 'text_field': 'caption'}),
    ({'metadata.csv': 'file_name,prompt\na.png,x', 'a.png': IMAGE},
     {'kind': 'imagefolder', 'text_field': 'prompt'}),
    ({'a.png': IMAGE, 'a.json': '{"url": "", "caption": "x"}'},
     {'kind': 'sidecar', 'text_field': 'caption'}),
    ({'b/a.png': IMAGE, 'readme.txt': 'x'}, {'kind': 'folder'}),
])  # fmt: skip
def test_usual_names_of_fields_are_found(files, fields, tmp_path):
    folder = folder_of(tmp_path, files)
    guess = guess_layout(folder)
    assert guess.source == {'path': str(folder), **fields}
    assert len(first_records(guess.source)) == 1
    assert guess_layout(folder / next(iter(files))) is not None  # a file stands for its folder


def test_columns_by_type_and_folders_one_below(tmp_path):
    table = pa.table({'url': ['u'], 'jpg': [IMAGE], 'txt': ['x'], 'key': ['1'],
                      'status': ['success'], 'error_message': [None]})  # fmt: skip
    (tmp_path / 'data').mkdir()
    pq.write_table(table, tmp_path / 'data' / '00000.parquet')
    (tmp_path / 'README.md').write_text('a copy of a hub repository')
    guess = guess_layout(tmp_path)
    assert guess.source == {
        'kind': 'parquet', 'path': str(tmp_path / 'data'), 'image_field': 'jpg',
        'text_field': 'txt',
    }  # fmt: skip
    assert 'img2dataset' in guess.what and len(first_records(guess.source)) == 1


def test_columns_of_texts_are_named_where_none_has_a_usual_name(tmp_path):
    table = pa.table({'image': [IMAGE], 'title': ['a'], 'summary': ['b']})
    pq.write_table(table, tmp_path / 'a.parquet')
    guess = guess_layout(tmp_path)
    assert guess.source['text_field'] == ''
    assert guess.what.endswith('with texts in the columns title, summary')


def test_tables_of_links_say_what_to_do(tmp_path):
    pq.write_table(pa.table({'URL': ['http://x/1.jpg'], 'TEXT': ['a']}), tmp_path / 'a.parquet')
    assert 'img2dataset' in guess_layout(tmp_path).advice
    config = SourceConfig('parquet', str(tmp_path), image_field='URL', text_field='TEXT')
    source = open_source(config)
    with pytest.raises(BrokenRecord, match="'http://x/1.jpg'; wanted a path.*download linked"):
        source.read(next(source.locations()))
    folder_of(tmp_path / 'list', {'a.jsonl': '{"url": "http://x/1.jpg", "text": "a"}'})
    assert 'img2dataset' in guess_layout(tmp_path / 'list').advice
    folder_of(tmp_path / '00000', {'1.jpg': IMAGE, '1.txt': 'a'})  # img2dataset, as files
    assert guess_layout(tmp_path).source['kind'] == 'sidecar'


def test_splits_of_an_imagefolder_are_named(tmp_path):
    for split in ('train', 'test'):
        files = {f'{split}/0.png': IMAGE, f'{split}/metadata.csv': 'file_name,text\n0.png,a\n'}
        folder_of(tmp_path, files)
    guess = guess_layout(tmp_path)
    assert guess.what.endswith(
        'in test, train, all of which are read; name the folder of one alone'
    )
    assert len(first_records(guess.source)) == 2
    assert 'all of which' not in guess_layout(tmp_path / 'train').what


def test_unknown_and_unreadable_layouts(tmp_path):
    assert guess_layout(tmp_path) is None and guess_layout(tmp_path / 'nowhere') is None
    (tmp_path / 'a.jsonl').write_text('\n')
    (tmp_path / 'dataset_dict.json').write_text('{}')
    assert guess_layout(tmp_path) is None
    (tmp_path / 'a.jsonl').write_text('{"page": "x"}')
    assert guess_layout(tmp_path) is None
    (tmp_path / '00000.tfrecord').write_bytes(b'')
    guess = guess_layout(tmp_path)
    assert guess.source is None and 'img2dataset: --output_format webdataset' in guess.advice


@pytest.mark.parametrize(('made', 'named', 'message'), [
    ('sidecar', 'jsonl', "no \\*.jsonl in there; .*; found there: images with a text file of the "
                         "same name each, read by {'kind': 'sidecar', 'path': '.*data'}"),
    ('imagefolder', 'tar', "read by {'kind': 'imagefolder'"),
    ('parquet', 'arrow', "'text_field': 'caption'}"),
    ('arrow', 'parquet', "Arrow files of .*splits test, train, read by {'kind': 'arrow'"),
])  # fmt: skip
def test_a_source_of_the_wrong_kind_names_the_right_one(made, named, message, tmp_path):
    folder = MAKERS[made][0](tmp_path / 'data')
    with pytest.raises(UserError, match=message):
        open_source(SourceConfig(named, str(folder)))


def test_no_hint_where_the_kind_is_right(tmp_path):
    folder = arrow_folder(tmp_path / 'data')
    with pytest.raises(UserError, match='set split to one of test, train') as caught:
        open_source(SourceConfig('arrow', str(folder), split='dev', text_field='caption'))
    assert 'found there' not in str(caught.value)


def test_damaged_shards_are_still_shards(tmp_path):
    tar_folder(tmp_path / 'data')
    source = {'kind': 'tar', 'path': str(tmp_path / 'data')}
    for name in ('000.tar', '001.tar'):
        (tmp_path / 'data' / name).write_bytes(b'damaged')
        assert guess_layout(tmp_path / 'data').source == source
