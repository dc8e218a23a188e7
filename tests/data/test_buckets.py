import dataclasses
import re

import numpy as np
import pytest
from helpers.data_folders import jsonl_folder, tar_folder

from infinity_jax.data.buckets import make_buckets, nearest_ratios, target_size
from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.data.pipeline import training_batches
from infinity_jax.data.stored_source import open_all, open_stored
from infinity_jax.errors import UserError
from infinity_jax.scales import RATIOS, nearest_ratio


def data(tmp_path, *kinds, **fields):
    """Sources by kind; the folder of each is made when first asked for."""
    makers = {'jsonl': jsonl_folder, 'tar': tar_folder}
    sources = []
    for kind in kinds:
        folder = tmp_path / kind
        if kind in makers and not folder.exists():
            makers[kind](folder)
        weight = {'jsonl': 3.0}.get(kind, 1.0)
        sources.append(SourceConfig(kind, str(folder), weight=weight))
    common = {'held_out_share': 0.0, 'max_broken_share': 0.5, 'image_size': 256}
    index_dir = str(tmp_path / 'index')
    return DataConfig(sources=tuple(sources), index_dir=index_dir, **{**common, **fields})


def test_nearest_ratio_is_the_schedules_own():
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.integers(1, 3000, (500, 2)), [[1125, 1000], [0, 0]]])
    names = list(RATIOS)
    got = nearest_ratios(sizes, names)
    assert [names[i] for i in got[:-1]] == [nearest_ratio(h / w) for h, w in sizes[:-1].tolist()]
    assert got[-1] == -1
    assert nearest_ratios(sizes[:5], ['1.000']).tolist() == [0] * 5


def test_target_sizes():
    assert target_size('1.000', 64) == (64, 64) and target_size('0.500', 256) == (176, 352)
    assert len({target_size(name, 256) for name in RATIOS}) == 15  # a shape tells its ratio
    with pytest.raises(UserError, match='image_size 64 is none of 256, 512, 768, 1024'):
        target_size('0.500', 64)


def test_images_fall_into_the_bucket_of_their_own_size(tmp_path):
    config = data(tmp_path, 'jsonl', 'tar', ratios=('all',))
    buckets = make_buckets(config, 'train', smallest=1)
    counts = {b.ratio: [(p.number, len(p.records)) for p in b.parts] for b in buckets}
    # The truncated image counts: only decoding tells.
    assert counts == {'1.000': [(0, 7), (1, 6)], '2.000': [(1, 4)], '0.500': [(0, 6)]}
    # Three quarters of the images are of jsonl, by its weight; inside it records are equal.
    shares = [p.share for b in buckets for p in b.parts]
    np.testing.assert_allclose(shares, [0.75 * 7 / 13, 0.25 * 0.6, 0.25 * 0.4, 0.75 * 6 / 13])


def test_weights_of_ratios_leave_those_of_sources(tmp_path):
    config = data(tmp_path, 'tar', ratios=('1.000', '2.000'), ratio_weights=(1.0, 3.0))
    square, tall = make_buckets(config, 'train', smallest=1)
    assert square.share == pytest.approx(1 / 3) and tall.share == pytest.approx(2 / 3)
    both = data(tmp_path, 'jsonl', 'tar', ratios=('1.000', '2.000'), ratio_weights=(1.0, 3.0))
    buckets = make_buckets(both, 'train', smallest=1)
    of_jsonl = sum(p.share for b in buckets for p in b.parts if p.number == 0)
    assert of_jsonl == pytest.approx(0.75)


def test_emoji_are_squares_without_end(tmp_path):
    config = data(tmp_path, 'emoji', 'tar', ratios=('1.000', '2.000'))
    square, tall = make_buckets(config, 'train', smallest=1)
    assert [p.records is None for p in square.parts] == [True, False]
    assert square.share == pytest.approx(0.5 + 0.5 * 0.6)
    with pytest.raises(UserError, match='source emoji .*has no record of data.ratios'):
        make_buckets(data(tmp_path, 'emoji', ratios=('2.000',)), 'train', smallest=1)


def test_small_buckets_are_left_out_and_said(tmp_path, caplog):
    config = data(tmp_path, 'tar', ratios=('all',))
    (square,) = make_buckets(config, 'train', smallest=5)
    assert square.ratio == '1.000' and square.share == 1
    assert 'ratio 2.000: 4 of 4 records' in caplog.text
    with pytest.raises(
        UserError, match='tar has 10 records.*at most 6 of one ratio.*lower batch_size'
    ):
        make_buckets(config, 'train', smallest=7)


def test_too_many_broken_records_stop_the_run_and_few_are_named(tmp_path, caplog):
    with pytest.raises(UserError, match='3 of 16 records are broken.*0.1.*0.500_1.jsonl line 5'):
        open_all(data(tmp_path, 'jsonl', max_broken_share=0.1), 'train')
    open_all(data(tmp_path, 'jsonl', max_broken_share=0.2), 'train')
    assert (
        'line 7: its caption is empty' in caplog.text and '3 of 16 records left out' in caplog.text
    )


def test_splits_of_one_source_share_no_record(tmp_path):
    config = data(tmp_path, 'jsonl', held_out_share=0.4)
    usable = [open_all(config, split)[0].usable for split in ('train', 'held_out')]
    assert (usable[0] ^ usable[1]).all() and 0 < usable[1].sum() < 12
    own = DataConfig(
        sources=config.sources, held_out=config.sources, index_dir=config.index_dir,
        max_broken_share=0.5,
    )  # fmt: skip
    assert all(open_all(own, split)[0].usable.all() for split in ('train', 'held_out'))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'ratios': ('1.1',)}, r"data.ratios is \('1.1',\)"),
        ({'ratios': ()}, 'data.ratios'),
        ({'ratio_weights': (1.0, 2.0)}, 'for each of the 1 ratios'),
        ({'held_out_share': 2.0}, 'data.held_out_share is 2.0; wanted 0 to 1'),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**fields)


def test_bad_sources():
    with pytest.raises(UserError, match="'csv' is unknown; choose one of .*jsonl, parquet"):
        SourceConfig('csv', '/data')
    with pytest.raises(UserError, match='tar /data: images is set, but kind tar has no such'):
        SourceConfig('tar', '/data', images='/images')
    with pytest.raises(UserError, match='kind tar has no path'):
        SourceConfig('tar')
    with pytest.raises(UserError, match='weight 0'):
        SourceConfig('tar', '/data', weight=0)


def test_data_of_which_nothing_is_held_out_is_said_to_be_small(tmp_path):
    config = data(tmp_path, 'tar', held_out_share=1e-6)
    with pytest.raises(UserError, match='tar .*raise data.held_out_share, now 1e-06, to') as caught:
        make_buckets(config, 'held_out', smallest=1)
    share = float(re.search('to (0[.][0-9]+) or more', str(caught.value))[1])
    (bucket,) = make_buckets(data(tmp_path, 'tar', held_out_share=share), 'held_out', smallest=1)
    assert sum(len(part.records) for part in bucket.parts) == 1


def test_few_records_are_repeated_on_request_or_the_line_says_what_to_set(tmp_path):
    jsonl_folder(tmp_path / 'jsonl', count=1, broken=False)
    one = data(tmp_path, 'jsonl')
    with pytest.raises(UserError, match='has 1 records .* or set data.repeat_records to True'):
        make_buckets(one, 'train', smallest=4)
    repeated = dataclasses.replace(one, repeat_records=True)
    (bucket,) = make_buckets(repeated, 'train', smallest=4)
    assert len(bucket.parts[0].records) == 1
    batch = next(training_batches(repeated, batch_size=4))
    assert batch.captions == ['jsonl 0'] * 4
    shared = dataclasses.replace(one, held_out_share=0.01)
    with pytest.raises(UserError, match='a single record, .*name sources in data.held_out'):
        make_buckets(shared, 'held_out', smallest=1)
    own = dataclasses.replace(repeated, held_out=one.sources)
    assert next(training_batches(own, split='held_out', batch_size=2)).captions == ['jsonl 0'] * 2


def test_where_all_records_are_broken_no_batch_size_is_advised(tmp_path):
    folder = tmp_path / 'jsonl'
    folder.mkdir()
    (folder / 'a.jsonl').write_text('{"file_name": "1.png", "text": "a"}\n' * 3)
    config = data(tmp_path, 'jsonl', max_broken_share=1.0)
    message = "all 3 records are broken, the first: .*set image_field to 'file_name'; correct"
    message += ".*; found there: .*, read by {'kind': 'jsonl', .*'image_field': 'file_name'}"
    with pytest.raises(UserError, match=message):
        make_buckets(config, 'train', smallest=4)
    stored = [open_stored(config.sources[0], config, 'train')]
    with pytest.raises(UserError, match='all 3 records are broken') as caught:
        make_buckets(config, 'train', smallest=4, stored=stored)
    assert 'batch_size' not in str(caught.value)


def test_damaged_files_count_by_their_share(tmp_path):
    folder = tar_folder(tmp_path / 'tar')
    (folder / '001.tar').write_bytes((folder / '001.tar').read_bytes()[:3000])
    config = data(tmp_path, 'tar', max_broken_share=0.05)
    message = r'tar .*: (\d) of (\d) records are broken, with about \1 in damaged files, .*001.tar'
    with pytest.raises(UserError, match=message):
        open_all(config, 'train')
    (stored,) = open_all(dataclasses.replace(config, max_broken_share=0.5), 'train')
    assert len(stored.index) == 5 and [row[0] for row in stored.index.damaged] == ['001.tar']
    assert stored.index.total == 5 + stored.index.lost
