"""Parquet and Arrow files: rows, columns, splits, damage."""

import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.data_folders import arrow_folder, encoded, image_table, parquet_folder

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.index import load_index
from infinity_jax.data.passed_over import PassedOver
from infinity_jax.data.records import BrokenRecord
from infinity_jax.data.sources import parquet
from infinity_jax.data.stored_source import open_source
from infinity_jax.errors import UserError


def opened(kind, folder, **fields):
    return open_source(SourceConfig(kind, str(folder), **{'text_field': 'caption', **fields}))


@pytest.mark.parametrize('kind', ['parquet', 'arrow'])
def test_rows_are_read_at_random_by_threads_and_copies(kind, tmp_path):
    makers = {'parquet': parquet_folder, 'arrow': arrow_folder}
    source = opened(kind, makers[kind](tmp_path / 'data'))
    locations = list(source.locations())
    assert len(locations) == 8 and len(set(map(source.record_name, locations))) == 8
    copy = pickle.loads(pickle.dumps(source))  # as a worker process gets it
    for number in (5, 0, 7, 3):
        record = copy.read(locations[number])
        wanted = [f'{kind} {number} a', f'{kind} {number} b'][: 1 + number % 2]
        assert record.captions.short == tuple(wanted)
        assert record.open_image().read() == encoded(64, 64, 500 + number)
    rng = np.random.default_rng(0)
    drawn = {record.captions.sample(rng, 1.0) for _ in range(20)}
    assert drawn == {f'{kind} 3 a', f'{kind} 3 b'}
    index = load_index(source, tmp_path / 'index')
    assert index.sizes.tolist() == [[64, 64]] * 8 and index.lost == 0
    images = opened(kind, tmp_path / 'data', text_field='')
    assert images.read(locations[0]).captions is None


def test_other_splits_are_counted_or_named(tmp_path):
    folder = parquet_folder(tmp_path / 'parquet')
    passed_over = PassedOver()
    list(opened('parquet', folder).locations(passed_over))
    assert passed_over.rows == [('file of another split', 1, 'test-00000-of-00001.parquet')]
    assert len(list(opened('parquet', folder, split='test').locations())) == 1
    (folder / 'train-00000-of-00002.parquet').unlink()
    passed_over = PassedOver()
    list(opened('parquet', folder).locations(passed_over))
    assert ('file absent', 1, 'train-00000-of-00002.parquet') in passed_over.rows
    for kind, path, message in (
        ('parquet', folder, "no \\*.parquet of split 'dev'; there are test-00000"),
        ('parquet', tmp_path, 'no \\*.parquet in there: name one of the folders in it: parquet'),
        ('arrow', arrow_folder(tmp_path / 'arrow'), "'dev'; set split to one of test, train"),
    ):
        with pytest.raises(UserError, match=message):
            opened(kind, path, split='dev')
    (tmp_path / 'arrow' / 'test' / 'data-00000-of-00001.arrow').unlink()
    with pytest.raises(UserError, match='1 of 1 files are missing, the first data-00000'):
        opened('arrow', tmp_path / 'arrow', split='test')


@pytest.mark.parametrize('text', ['{', '[' * 100_000, '[]', '{}', '{"_data_files": [1]}', '\udcff'])
def test_a_damaged_description_is_one_line(tmp_path, text):
    folder = arrow_folder(tmp_path / 'arrow')
    (folder / 'test' / 'state.json').write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(UserError, match='state.json cannot be read: .*save the data set again'):
        opened('arrow', folder, split='test')


def test_a_pipe_in_place_of_a_file_is_never_waited_for(tmp_path):
    folder = parquet_folder(tmp_path / 'parquet')
    pipe = folder / 'train-00001-of-00002.parquet'
    pipe.unlink()
    os.mkfifo(pipe)
    passed_over = PassedOver()
    list(opened('parquet', folder).locations(passed_over))
    assert ('not a regular file', 1, pipe.name) in passed_over.rows
    saved = arrow_folder(tmp_path / 'arrow')
    (saved / 'test' / 'state.json').unlink()
    os.mkfifo(saved / 'test' / 'state.json')
    with pytest.raises(UserError, match='state.json: is a pipe or device; wanted a regular file'):
        opened('arrow', saved, split='test')


def write(folder, columns, **options):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / 'a.parquet', **options)
    return folder


def test_images_are_bytes_groups_or_paths_and_captions_may_be_nested(tmp_path):
    (tmp_path / 'a.png').write_bytes(encoded(8, 8))
    folder = write(tmp_path, {
        'file_name': ['a.png', 'a.png'],
        'bytes': [encoded(8, 8), None],
        'both': [{'bytes': None, 'path': 'a.png'}] * 2,
        'text': ['short', None],
        'long_caption': ['long', 'long'],
        'sentences': [[{'raw': 'a'}, {'raw': 'b'}], []],
        'label': [1, 2],
    })  # fmt: skip
    for field in ('file_name', 'bytes', 'both'):
        source = opened('parquet', folder, image_field=field, text_field='text')
        first, second = (source.read(location) if field != 'bytes' or location[2] == 0 else None
                         for location in source.locations())  # fmt: skip
        assert first.open_image().read() == encoded(8, 8)
        assert first.captions.short == ('short',) and first.captions.long == 'long'
    for image, text, row, reason in (
        ('bytes', 'text', 1, 'bytes is empty'),
        ('label', 'text', 0, 'label is int; wanted the bytes of an image file, or its path'),
        ('both', 'label', 0, 'a caption is not text, but int'),
    ):
        source = opened('parquet', folder, image_field=image, text_field=text)
        with pytest.raises(BrokenRecord, match=reason):
            source.read((0, 0, row))
    nested = opened('parquet', folder, image_field='both', text_field='sentences/raw')
    assert nested.read((0, 0, 0)).captions.short == ('a', 'b')


@pytest.mark.parametrize('kind', ['parquet', 'arrow'])
def test_a_missing_column_names_the_ones_that_are_there(kind, tmp_path):
    folder = {'parquet': parquet_folder, 'arrow': arrow_folder}[kind](tmp_path / 'data')
    for fields, message in (
        ({'text_field': 'text'}, "no column 'text'; set text_field to 'caption'"),
        ({'image_field': 'photo'}, "no column 'photo'; set image_field to 'image'"),
    ):
        with pytest.raises(UserError, match=f'holds no record, .*{message}'):
            load_index(opened(kind, folder, **fields), tmp_path / 'index')


def test_rows_of_img2dataset_without_an_image_are_passed_over(tmp_path):
    states = ['success', 'failed_to_download', 'success', 'failed_to_resize']
    source = opened('parquet', write(tmp_path / 'data', {
        'jpg': [encoded(8, 8) if state == 'success' else None for state in states],
        'caption': list('abcd'), 'status': states, 'error_message': [None, '404', None, 'x'],
    }, row_group_size=2), image_field='jpg')  # fmt: skip
    passed_over = PassedOver()
    assert len(list(source.locations(passed_over))) == 2
    assert [row[:2] for row in passed_over.rows] == [
        ('row of status failed_to_download', 1), ('row of status failed_to_resize', 1),
    ]  # fmt: skip


def test_damage_is_found_by_file_or_by_row(tmp_path):
    folder = parquet_folder(tmp_path / 'parquet', count=12)
    path = folder / 'train-00001-of-00002.parquet'
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    index = load_index(opened('parquet', folder), tmp_path / 'index')
    assert len(index) == 6 and index.lost == pytest.approx(6, abs=1)
    assert 'not a Parquet file, or damaged' in index.damaged[0][1]
    path.write_bytes(whole[:50] + bytes(200) + whole[250:])
    index = load_index(opened('parquet', folder), tmp_path / 'index')
    assert len(index) == 12 and 1 <= len(index.broken) <= 3 and not index.damaged
    arrow = arrow_folder(tmp_path / 'arrow')
    path = arrow / 'train' / 'data-00000-of-00001.arrow'
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match='arrow.*holds no record, data-00000.*: not an Arrow file'):
        load_index(opened('arrow', arrow), tmp_path / 'index')


def test_damaged_offsets_are_never_followed(tmp_path):
    texts = ['a red apple', 'a blue car', 'a cat']
    table = pa.table({'image': [encoded(8, 8, 0)] * 3, 'caption': texts})
    with pa.OSFile(str(tmp_path / 'a.arrow'), 'wb') as file:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    content = (tmp_path / 'a.arrow').read_bytes()
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    damaged = np.array([0, 21, 11, ends[-1]], np.int32)  # of the second text: -10 bytes
    assert content.count(ends.tobytes()) == 1
    (tmp_path / 'a.arrow').write_bytes(content.replace(ends.tobytes(), damaged.tobytes()))
    source = opened('arrow', tmp_path)
    first, second, third = source.locations()
    assert source.read(third).captions.short[0].endswith('a cat')
    with pytest.raises(BrokenRecord, match='offset'):
        source.read(second)


def test_a_row_group_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, 'MAX_GROUP_BYTES', 2000)
    with pytest.raises(UserError, match='row group .*write the file again with row_group_size=100'):
        load_index(opened('parquet', parquet_folder(tmp_path / 'data')), tmp_path / 'index')


def test_few_row_groups_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, 'KEPT_BYTES', 8000)
    groups = parquet._RowGroups()
    folder = parquet_folder(tmp_path / 'data', count=24)
    for path in sorted(folder.glob('train*')):
        for group in range(4):
            table = groups.read(path, group, ('image',))
            assert groups.read(path, group, ('image',)) is table
            assert sum(kept.nbytes for kept in groups._kept.values()) <= 8000


def test_an_arrow_file_of_the_other_format_is_read(tmp_path):
    table = image_table(4)
    with pa.OSFile(str(tmp_path / 'some-train.arrow'), 'wb') as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    (tmp_path / 'some-test.arrow').write_bytes(b'')
    source = opened('arrow', tmp_path)
    assert [source.read(place).captions.short[0] for place in source.locations()] == [
        f'parquet {i} a' for i in range(4)
    ]
    assert [path.name for path in source.files()] == ['some-train.arrow']
