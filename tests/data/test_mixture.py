"""Several sources and shapes together: order, resume, hosts, broken records."""

import collections
import dataclasses

import numpy as np
import pytest
from helpers.data_folders import jsonl_folder, tar_folder, tfds_folder

from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.data.pipeline import MIN_READ, CountBroken, training_batches
from infinity_jax.errors import UserError


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mixture')
    sources = (
        SourceConfig('jsonl', str(jsonl_folder(folder / 'jsonl')), weight=2.0),
        SourceConfig('tar', str(tar_folder(folder / 'tar'))),
        SourceConfig(
            'tfds', str(tfds_folder(folder / 'tfds')), image_field='image', text_field='label'
        ),
        SourceConfig('emoji'),
    )
    return DataConfig(
        sources=sources,
        image_size=256,
        ratios=('1.000', '2.000', '0.500'),
        held_out_share=0.0,
        max_broken_share=0.2,
        index_dir=str(folder / 'index'),
    )


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(a, b):
    return a.captions == b.captions and np.array_equal(a.pixels_BYX3, b.pixels_BYX3)


def test_all_sources_and_shapes_in_their_shares(data, caplog):
    iterator = training_batches(data, batch_size=4)
    batches = take(iterator, 60)
    shapes = collections.Counter(batch.pixels_BYX3.shape[1:3] for batch in batches)
    assert set(shapes) == {(256, 256), (352, 176), (176, 352)}
    words = [caption.split()[0] for batch in batches for caption in batch.captions]
    seen = collections.Counter(w if w in ('jsonl', 'tar', 'tfds') else 'emoji' for w in words)
    assert {name: round(n / 240 * 5) for name, n in seen.items()} == {
        'jsonl': 2, 'tar': 1, 'tfds': 1, 'emoji': 1,
    }  # fmt: skip
    captions = [caption for batch in batches for caption in batch.captions]
    assert not any('--' in caption for caption in captions)
    # The truncated image was replaced and named, once; it and the known ones never appear.
    assert not {'truncated', 'missing'} & set(captions)
    assert caplog.text.count('0.500_1.jsonl line 6: image cannot be read') == 1


@pytest.mark.parametrize('workers', [0, 2])
def test_resume_is_exact_with_other_workers(data, workers):
    wanted = take(training_batches(data, batch_size=4, seed=3), 11)
    resumed = dataclasses.replace(data, num_workers=workers)
    resumed = training_batches(resumed, batch_size=4, seed=3)
    resumed.move_to(5)
    assert all(map(same, wanted[5:], take(resumed, 6)))
    resumed.close()


def test_the_seed_decides(data):
    one, two = (training_batches(data, batch_size=4, seed=seed) for seed in (0, 1))
    first, second = take(one, 4), take(two, 4)
    assert not any(map(same, first, second))


def test_hosts_share_the_batches_of_a_single_one(data):
    stored = dataclasses.replace(data, sources=data.sources[:3])
    hosts = [
        training_batches(stored, batch_size=4, process_index=host, process_count=2)
        for host in range(2)
    ]
    seen, alone = set(), take(training_batches(stored, batch_size=4), 40)
    for wanted, *slices in zip(alone, *(take(host, 40) for host in hosts), strict=True):
        assert sum((batch.captions for batch in slices), []) == wanted.captions
        pixels = np.concatenate([batch.pixels_BYX3 for batch in slices])  # of one shape
        np.testing.assert_array_equal(pixels, wanted.pixels_BYX3)
        seen |= set(wanted.captions)
    assert len(seen) == 12 + 10 + 8  # all good records


def test_many_broken_images_stop_the_run(data):
    count = CountBroken(max_share=0.01)
    count(MIN_READ // 2, [('x', 'why')] * 10)
    with pytest.raises(UserError, match='11 of 1011 records .*0.01, the last y: how'):
        count(MIN_READ // 2, [('y', 'how')])


@pytest.mark.parametrize('workers', [0, 1])
def test_data_that_vanished_stops_the_run_with_one_line(tmp_path, workers):
    folder = jsonl_folder(tmp_path / 'data', broken=False)
    data = DataConfig(
        sources=(SourceConfig('jsonl', str(folder)),), held_out_share=0.0, num_workers=workers,
        index_dir=str(tmp_path / 'index'),
    )  # fmt: skip
    training_batches(data, batch_size=4).close()
    for image in folder.glob('*.jpg'):
        image.unlink()
    iterator = training_batches(data, batch_size=4)
    with pytest.raises(UserError, match='12 records in a row are broken, the last jsonl') as caught:
        next(iterator)
    assert '\n' not in str(caught.value)
    iterator.close()
