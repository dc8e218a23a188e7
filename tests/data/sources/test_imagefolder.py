import dataclasses

import pytest
from helpers.data_folders import encoded, imagefolder_folder

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.index import load_index
from infinity_jax.data.passed_over import PassedOver
from infinity_jax.data.records import BrokenRecord
from infinity_jax.data.sources.imagefolder import ImagefolderSource
from infinity_jax.errors import UserError


def opened(folder, **fields):
    return ImagefolderSource.open(SourceConfig('imagefolder', str(folder), **fields))


def test_json_lines_and_csv_of_all_subfolders(tmp_path):
    source = opened(imagefolder_folder(tmp_path / 'data', count=6))
    found = {}
    for location in source.locations():
        record = source.read(location)
        found[source.record_name(location)] = record.captions.short[0]
        number = int(record.captions.short[0].split()[1].rstrip(','))
        assert record.open_image().read() == encoded(64, 64, 300 + number, 'PNG')
    assert found == {
        name: f'imagefolder {i}, "red"\nand\u2028blue'
        for i, name in (
            (0, 'metadata.jsonl line 1'), (2, 'metadata.jsonl line 2'),
            (4, 'metadata.jsonl line 3'),
            # Each row of the CSV has two lines.
            (1, 'more/metadata.csv line 2'), (3, 'more/metadata.csv line 4'),
            (5, 'more/metadata.csv line 6'),
        )
    }  # fmt: skip
    images = dataclasses.replace(source, text_field='')
    assert images.read(next(images.locations())).captions is None


def test_what_no_list_names_is_counted(tmp_path):
    folder = imagefolder_folder(tmp_path / 'data', count=4)
    (folder / 'more' / 'metadata.jsonl').write_text('\n{"file_name": "01.png", "text": "a"}\n{')
    passed_over = PassedOver()
    assert len(list(opened(folder).locations(passed_over))) == 4
    assert passed_over.rows == [
        ('empty line', 1, 'more/metadata.jsonl line 1'),
        ('image that no list names', 1, 'more/03.png'),
    ]


def test_bad_rows_are_broken_records_and_an_open_quote_a_damaged_list(tmp_path):
    path = tmp_path / 'metadata.csv'
    path.write_bytes(
        b'file_name,caption\na.png,a cat, sitting\n\xff.png,a\n"a.png","a\nb"\na.png,a\n\n'
    )
    source = opened(tmp_path)
    many, latin, *fields = source.locations()
    for location, reason in (
        (many, '3 values under 2 column names; quote captions with commas'),
        (latin, 'bad CSV: .*utf-8'),
        (fields[0], "no field 'text'; set text_field to 'caption'"),
    ):
        with pytest.raises(BrokenRecord, match=reason):
            source.read(location)
    assert len(fields) == 2
    named = opened(tmp_path, text_field='caption')
    assert named.read(fields[0]).captions.short == ('a\nb',)
    with pytest.raises(BrokenRecord, match="'path'; set image_field to 'file_name'"):
        opened(tmp_path, image_field='path').read(fields[0])
    path.write_text('file_name,text\na.png,"a cat\n')
    with pytest.raises(UserError, match='holds no record, metadata.csv: line 2 is not CSV: '):
        load_index(opened(tmp_path), tmp_path / 'index')


def test_a_folder_without_a_list_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match='no metadata.jsonl or metadata.csv in there'):
        opened(tmp_path)
