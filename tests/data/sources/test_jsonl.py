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
