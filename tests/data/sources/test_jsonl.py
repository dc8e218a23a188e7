import json

import pytest
from helpers.data_folders import jsonl_folder

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.records import BrokenRecord
from infinity_jax.data.sources.jsonl import JsonlSource
from infinity_jax.errors import UserError


def test_every_line_is_a_record_even_if_the_file_names_are_wrong(tmp_path):
    source = JsonlSource.open(SourceConfig('jsonl', str(jsonl_folder(tmp_path / 'data'))))
    locations = list(source.locations())
    assert len(locations) == 16  # the names of the files promise 99999 and 1
    names = [source.record_name(location) for location in locations]
    assert names[0] == '0.500_1.jsonl line 1' and names[-1] == '1.000_99999.jsonl line 8'
    texts = {}
    for location in locations[-8:]:
        record = source.read(location)
        texts[record.captions.short[0]] = record.open_image().read()
    data = tmp_path / 'data'
    assert texts['jsonl 3 --ar 16:9'] == (data / '03.jpg').read_bytes()


def test_bad_lines_are_broken_records(tmp_path):
    folder = tmp_path / 'data'
    folder.mkdir()
    lines = ['{"image_path": 3}', '[1]', '{"image_path": "a.jpg", "text": 5}', '{"image', '\xff']
    lines += ['{"image_path": "\\ud83d.jpg"}', '{"image_path": "a.jpg", "text": "cut \\ud83d"}']
    (folder / 'a.jsonl').write_text('\n'.join(lines), encoding='latin-1')
    source = JsonlSource.open(SourceConfig('jsonl', str(folder)))
    reasons = ('image_path is 3', 'list instead', 'not text', 'bad JSON', 'bad JSON')
    reasons += (r"image_path is '\\ud83d.jpg'", 'half of a character')
    for location, reason in zip(source.locations(), reasons, strict=True):
        with pytest.raises(BrokenRecord, match=reason):
            source.read(location)


def test_a_folder_without_files_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match='no \\*.jsonl'):
        JsonlSource.open(SourceConfig('jsonl', str(tmp_path)))


def test_a_list_in_another_encoding_is_broken_and_a_mark_is_ignored(tmp_path):
    text = '{"image_path": "a.jpg", "text": "a"}\n' * 3
    for encoding, good in (('utf-8-sig', 3), ('utf-16', 0), ('utf-32', 0)):
        (tmp_path / 'a.jsonl').write_bytes(text.encode(encoding))
        source, read = JsonlSource.open(SourceConfig('jsonl', str(tmp_path))), 0
        for location in source.locations():
            try:
                source.read(location)
                read += 1
            except BrokenRecord as error:
                assert 'bad JSON' in str(error)
        assert read == good, encoding


def test_a_path_that_cannot_be_is_a_broken_record(tmp_path):
    for path in ('', 'x' * 5000, 'a\0.jpg'):
        (tmp_path / 'a.jsonl').write_text(json.dumps({'image_path': path, 'text': 'a'}))
        source = JsonlSource.open(SourceConfig('jsonl', str(tmp_path)))
        with pytest.raises(BrokenRecord, match="^image_path is '.{,70}; wanted the path of a f"):
            source.read(next(source.locations()))
