import dataclasses

import pytest
from helpers.data_folders import encoded, sidecar_folder

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.passed_over import PassedOver
from infinity_jax.data.records import BrokenRecord
from infinity_jax.data.sources.sidecar import SidecarSource
from infinity_jax.errors import UserError


def opened(folder, **fields):
    return SidecarSource.open(SourceConfig('sidecar', str(folder), **fields))


def test_texts_next_to_images_and_fields_of_json(tmp_path):
    source = opened(sidecar_folder(tmp_path / 'data', count=4))
    first, *_ = locations = list(source.locations())
    names = [source.record_name(location) for location in locations]
    assert names == [f'{i % 2:05}/{i:09}.jpg' for i in (0, 2, 1, 3)]
    assert source.read(first).open_image().read() == encoded(64, 64, 400)
    assert [source.read(place).captions.short for place in locations] == [
        (f'sidecar {i}',) for i in (0, 2, 1, 3)
    ]
    assert len(source.files()) == 12  # a changed text makes a new index
    images = dataclasses.replace(source, text_field='')
    assert images.read(first).captions is None
    for path in (tmp_path / 'data').rglob('*.txt'):
        path.unlink()
    named = opened(tmp_path / 'data', text_field='caption')
    assert [named.read(place).captions.short[0] for place in named.locations()] == list('0213')


def test_every_file_is_a_record_or_counted(tmp_path):
    for name in ('a.jpg', 'a b.jpg', 'a.caption', 'a b.txt', 'p.v2.png', 'p.v2.txt', 'readme.txt',
                 '00000_stats.json', 'lone.jpg', 'x.parquet', '._a.jpg'):  # fmt: skip
        (tmp_path / name).write_text(name)
    source, passed_over = opened(tmp_path), PassedOver()
    found = {}
    for location in source.locations(passed_over):
        try:
            found[source.record_name(location)] = source.read(location).captions.short[0]
        except BrokenRecord as error:
            found[source.record_name(location)] = str(error)
    assert found == {
        'a.jpg': 'a.caption', 'a b.jpg': 'a b.txt', 'p.v2.png': 'p.v2.txt',
        'lone.jpg': 'it has no text file of the same name',
    }  # fmt: skip
    assert sorted(passed_over.rows) == [
        ('file of ending .parquet', 1, 'x.parquet'),
        ('hidden file', 1, '._a.jpg'),
        ('json file without an image', 1, '00000_stats.json'),
        ('text file without an image', 1, 'readme.txt'),
    ]


def test_a_folder_of_images_alone_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match='no images in there'):
        opened(tmp_path)
    (tmp_path / 'a.png').write_bytes(b'')
    with pytest.raises(UserError, match='no NAME.txt or NAME.json next to the images in there'):
        opened(tmp_path)
