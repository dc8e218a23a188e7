"""Reading and writing shards of features, without any network."""

import os
import sys

import numpy as np
import pytest

from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.data.features import reader
from infinity_jax.data.features import writer as writer_module
from infinity_jax.data.features.image_batches import work_items
from infinity_jax.data.features.reader import (
    CAPTION_RULES,
    FeatureInfo,
    FeatureSource,
    read_info,
    shard_path,
)
from infinity_jax.data.features.writer import NewRecord, ShardWriter, claim_folder
from infinity_jax.data.pipeline import training_batches
from infinity_jax.errors import UserError

INFO = FeatureInfo(
    made_from='a', records=8, shards=1, image_size=256, ratios=('1.000', '2.000'), tokenizer='b',
    stride=16, bits=4, dtype='float32',
)  # fmt: skip


def record(number):
    """Of features that are all its number; every other one is tall."""
    grid, size = ((22, 11), (900, 440)) if number % 2 else ((16, 16), (500, 512))
    features = np.full((*grid, 4), number, np.float32)
    return NewRecord(number, f'n{number}', size, features, RecordCaptions((f'{number}',)))


@pytest.fixture
def folder(tmp_path):
    """Squares first, as they are encoded."""
    folder = tmp_path / 'features'
    claim_folder(folder, INFO)
    writer = ShardWriter(shard_path(folder, INFO, 0))
    for number in (0, 2, 4, 6, 1, 3, 5, 7):
        writer.add(record(number))
    writer.finish()
    return folder


def batches(folder):
    data = DataConfig(
        sources=(SourceConfig('features', str(folder)),), image_size=256, held_out_share=0.0,
        ratios=INFO.ratios, index_dir=str(folder.parent / 'index'), max_broken_share=0.1,
    )  # fmt: skip
    return training_batches(data, batch_size=4)


def test_the_table_has_the_order_of_the_source(folder):
    source = FeatureSource.open(SourceConfig('features', str(folder)))
    locations = source.table().locations
    assert [source.read(tuple(location.tolist())).name for location in locations] == [
        f'n{number}' for number in range(8)
    ]


def test_batches_hold_features_of_one_shape(folder):
    iterator, shapes = batches(folder), set()
    for _ in range(4):
        batch = next(iterator)
        shapes.add(batch.features_Bhwd.shape)
        numbers = batch.features_Bhwd[:, 0, 0, 0]
        assert batch.captions == [f'{number:.0f}' for number in numbers]
    assert shapes == {(4, 16, 16, 4), (4, 22, 11, 4)}


def test_a_damaged_record_is_replaced_and_named(folder, caplog):
    path = shard_path(folder, INFO, 0)
    content = bytearray(path.read_bytes())
    where = content.index(record(2).features.tobytes())
    content[where] ^= 1
    path.write_bytes(content)
    iterator = batches(folder)
    captions = {caption for _ in range(6) for caption in next(iterator).captions}
    assert captions == set('01345678') - {'8'}
    assert '00000-of-00001.array_record record 1: ' in caplog.text


def test_a_damaged_table_is_one_line(folder):
    path = shard_path(folder, INFO, 0)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match='array_record cannot be read: .*delete it and') as caught:
        batches(folder)
    assert '\n' not in str(caught.value)


def test_the_work_of_a_shard_does_not_depend_on_the_others():
    class Index:
        sizes = np.array([(64, 64), (0, 0), (128, 64), (64, 64), (64, 64), (128, 64), (64, 64)])

    def work(shards):
        items = work_items(Index(), INFO.ratios, 3, 2, shards)
        return [(item.shard, item.bucket, item.numbers.tolist()) for item in items]

    assert work([0]) + work([1]) == work([0, 1]) == [
        (0, 0, [0, 3]), (0, 1, [2]), (1, 0, [4, 6]), (1, 1, [5]),
    ]  # fmt: skip


def test_captions_of_older_folders_keep_the_order_of_their_text_features(tmp_path, monkeypatch):
    captions = RecordCaptions(('--ar 1:1', 'a cat'), '-- b')
    found = []
    for number, rules in enumerate((1, CAPTION_RULES)):
        monkeypatch.setattr(writer_module, 'CAPTION_RULES', rules)
        folder = tmp_path / str(number)
        claim_folder(folder, INFO)
        writer = ShardWriter(shard_path(folder, INFO, 0))
        writer.add(NewRecord(0, 'a', (256, 256), np.zeros((16, 16, 4), np.float32), captions))
        writer.finish()
        source = FeatureSource.open(SourceConfig('features', str(folder)))
        location = tuple(source.table().locations[0].tolist())
        found.append(source.read(location).captions.every())
    assert found == [('a cat',), ('--ar 1:1', 'a cat', '-- b')]


def test_stored_features_without_their_package_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'array_record.python', None)  # as on Windows
    with pytest.raises(UserError, match='stored features need the package array_record'):
        reader.array_record_module()


@pytest.mark.parametrize('text', ['{', '[' * 100_000, '[]', '\udcff', None])
def test_a_damaged_description_is_one_line(tmp_path, text):
    if text is None:
        os.mkfifo(tmp_path / 'features.json')
    else:
        (tmp_path / 'features.json').write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(UserError, match='features.json: (bad JSON|is a pipe)') as caught:
        read_info(tmp_path)
    assert '\n' not in str(caught.value)
