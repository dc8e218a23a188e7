import dataclasses

import numpy as np
import pytest
from helpers.data_folders import jsonl_folder, tar_folder
from PIL import Image

from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.errors import UserError
from infinity_jax.tools import inspect_data as module
from infinity_jax.tools.inspect_data import inspect_data, measure_speed
from infinity_jax.training.config import RunConfig
from infinity_jax.training.optimizer import OptimizerConfig


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('inspect')
    sources = (
        SourceConfig('jsonl', str(jsonl_folder(folder / 'jsonl'))),
        SourceConfig('tar', str(tar_folder(folder / 'tar'))),
        SourceConfig('emoji'),
    )
    data = DataConfig(
        sources=sources, image_size=256, ratios=('1.000', '0.500'), held_out_share=0.0,
        max_broken_share=0.2,
    )  # fmt: skip
    return RunConfig(
        task='t2i', run_dir=str(folder / 'run'), steps=1, batch_size=4, data=data,
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )  # fmt: skip


def test_the_report(config, tmp_path, capsys):
    report = inspect_data(config, count=6, out=tmp_path / 'sheet.png')
    printed = capsys.readouterr().out
    assert [source['records'] for source in report['sources']] == [16, 10, None]
    assert 'jsonl: 16 records, 3 broken, 16 of the train split' in printed
    assert '0.500_1.jsonl line 7: its caption is empty' in printed
    assert '1 passed over: empty line (the first: 1.000_99999.jsonl line' in printed
    square, wide = report['buckets']
    assert square['records'] == [7, 10, None] and wide['records'] == [6]
    assert square['share'] + wide['share'] == pytest.approx(1) and 'endless' in printed
    assert report['words']['least'] == 1 and report['words']['most'] > 4  # of emoji
    with Image.open(tmp_path / 'sheet.png') as sheet:
        assert sheet.width == 8 * 140 + 12 and report['shown'] == 6


def test_too_many_broken_records_are_listed_and_not_refused(config, tmp_path, capsys, monkeypatch):
    strict = dataclasses.replace(config.data, max_broken_share=0.0)
    monkeypatch.setattr(module, '_contact_sheet', lambda *_: 0)  # training itself would refuse
    inspect_data(dataclasses.replace(config, data=strict), count=1, out=tmp_path / 'a.png')
    assert '3 broken' in capsys.readouterr().out


def test_speed(config, capsys):
    found = measure_speed(config, batches=2)
    assert found['rate'] > 0 and found['cpu'] >= 0 and 'images/s' in capsys.readouterr().out


@pytest.mark.parametrize('call', [
    lambda config: inspect_data(config, count=0, out='a.png'),
    lambda config: measure_speed(config, 0),
])  # fmt: skip
def test_counts_below_one_are_user_errors(config, call):
    with pytest.raises(UserError, match='0; wanted 1 or more'):
        call(config)


def test_a_image_keeps_its_shape_on_the_sheet():
    squared = module._squared(np.zeros((2, 4, 3), np.uint8))
    assert squared.shape == (4, 4, 3) and (squared[[0, 3]] == 255).all() and not squared[1:3].any()
