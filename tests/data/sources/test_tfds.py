import sys

import numpy as np
import pytest
from helpers.data_folders import encoded, tfds_folder

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.records import BrokenRecord
from infinity_jax.data.sources.tfds import TfdsSource
from infinity_jax.errors import UserError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tfds_folder(tmp_path_factory.mktemp('tfds'), count=4)


def opened(folder, **fields):
    fields = {'image_field': 'image', 'text_field': 'label', **fields}
    return TfdsSource.open(SourceConfig('tfds', str(folder), **fields))


def test_examples_come_encoded_and_without_tensorflow(folder):
    source = opened(folder)
    records = [source.read(location) for location in source.locations()]
    images = {r.captions.short: r.open_image().read() for r in records}
    assert images == {(f'tfds {i}',): encoded(64, 64, 200 + i) for i in range(4)}
    assert all(path.exists() for path in source.files())
    assert source.record_name((2,)).endswith('train example 2')
    assert 'tensorflow' not in sys.modules


def test_nested_lists_of_texts_are_all_used(folder):
    captions = opened(folder, text_field='captions/text').read((0,)).captions
    assert len(captions.short) == 2
    rng = np.random.default_rng(0)
    assert {captions.sample(rng, 0.2) for _ in range(30)} == set(captions.short)


def test_a_part_of_a_split(folder):
    assert len(list(opened(folder, split='train[:50%]').locations())) == 2


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'image_field': 'photo'}, "no field 'photo'; set image_field to one of .*image"),
        ({'text_field': 'text/en'}, "no field 'text/en'; set text_field"),
        ({'name': 'nowhere_to_be_found'}, 'nowhere_to_be_found'),
    ],
)
def test_wrong_names_are_user_errors(folder, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        opened(folder, **fields)
    assert '\n' not in str(caught.value)


def test_an_unknown_split_is_a_user_error(folder):
    with pytest.raises(UserError, match='no such split; choose one of train'):
        opened(folder, split='trian').files()


@pytest.mark.parametrize('field', ['captions/nothing', 'label/nothing', 'captions', 'image'])
def test_a_field_that_is_no_text_makes_broken_records(folder, field):
    with pytest.raises(BrokenRecord, match=f'{field} is not text'):
        opened(folder, text_field=field).read((0,))


@pytest.mark.parametrize(
    ('cut', 'broken', 'reason'), [(False, 1, 'hash mismatch'), (True, 4, 'should be at least')]
)
def test_damaged_bytes_are_broken_records(tmp_path, cut, broken, reason):
    source = opened(tfds_folder(tmp_path, count=4))
    (path,) = source.files()
    content = bytearray(path.read_bytes())
    content[2000] ^= 255  # inside a record, which are 1 to 2 kB each
    path.write_bytes(content[:3000] if cut else content)
    reasons = []
    for location in source.locations():
        try:
            source.read(location)
        except BrokenRecord as error:
            reasons.append(str(error))
    assert len(reasons) == broken and reason in reasons[0]
    assert '\n' not in ''.join(reasons)
