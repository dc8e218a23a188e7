import dataclasses

import numpy as np
import pytest
from helpers.data_folders import encoded, jsonl_folder, line, sidecar_folder, tar_folder
from PIL import Image

from infinity_jax import cli
from infinity_jax.config import TransformerConfig
from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.errors import UserError
from infinity_jax.tools import inspect_data as module
from infinity_jax.tools.inspect_data import inspect_data, measure_speed
from infinity_jax.tools.inspect_layout import inspect_layout
from infinity_jax.training.config import RunConfig
from infinity_jax.training.optimizer import OptimizerConfig
from infinity_jax.training.transformer.config import T2IConfig, TextTraining


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
        assert sheet.width == 6 * 140 + 12 and report['shown'] == 6


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


def test_images_that_are_enlarged_or_cut_are_counted(tmp_path, capsys):
    folder = tmp_path / 'images'
    folder.mkdir()
    for name, width, height in (('small', 32, 32), ('wide', 1000, 20), ('good', 300, 256)):
        (folder / f'{name}.png').write_bytes(encoded(height, width, kind='PNG'))
    report = inspect_layout(folder, count=2, out=tmp_path / 'sheet.png')
    printed = capsys.readouterr().out
    assert 'images without captions\n' in printed and 'no captions were found' in printed
    # 256 / 32 = 8; a bucket of 144 x 432 keeps 60 of 1000 columns.
    assert '2 images are enlarged more than 2 times, up to 8.0 times' in printed
    assert '1 images lose more than 50% of their area to the crop, up to 94.0%' in printed
    assert report['enlarged'] == 2 and report['cut'] == 1


def test_a_folder_without_a_config(tmp_path, capsys):
    folder = sidecar_folder(tmp_path / 'data')
    (folder / 'lone.jpg').write_bytes(encoded(64, 64))
    sheet = str(tmp_path / 'sheet.png')
    cli.main(['data', 'inspect', str(folder), '--out', sheet, '--count', '2'])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f'{folder}: images with a text file of the same name each'
    source = {'kind': 'sidecar', 'path': str(folder)}
    assert printed[1] == f'config.data.sources = ({source},)'
    assert printed[2].endswith('9 records, 1 broken, 9 of the train split')
    assert ['1.000', '256', 'x', '256', '8', '100.0%'] in [row.split() for row in printed]
    (tmp_path / 'shards').mkdir()
    (tmp_path / 'shards' / '0.tfrecord').write_bytes(b'')
    (tmp_path / 'none').mkdir()
    for name, message in (('shards', 'TFRecord files: they cannot'), ('none', 'no layout of')):
        with pytest.raises(UserError, match=message):
            inspect_layout(tmp_path / name, count=1, out=sheet)
    with pytest.raises(SystemExit):
        cli.main(['data', 'inspect', str(folder), '--config.seed=3'])
    assert 'is no config file' in capsys.readouterr().err


def test_captions_that_the_model_reads_in_part_are_counted(tmp_path, capsys):
    folder = tmp_path / 'data'
    folder.mkdir()
    (folder / 'a.png').write_bytes(encoded(16, 16))
    texts = ('a red apple', '一只红苹果', 'a red apple and ' * 20)
    (folder / 'a.jsonl').write_text('\n'.join(line('a.png', text=text) for text in texts))
    config = T2IConfig(
        task='t2i', run_dir=str(tmp_path), steps=1, batch_size=1, text=TextTraining(),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        transformer=TransformerConfig(depth=1, width=32, num_heads=2, bits=8, text_length=16),
        data=DataConfig(sources=(SourceConfig('jsonl', str(folder)),), held_out_share=0.0),
    )  # fmt: skip
    report = inspect_data(config, count=1, out=tmp_path / 'sheet.png')
    printed = capsys.readouterr().out
    assert 200 < report['unknown'] < 450 and 200 < report['too_long'] < 450  # a third of 1000
    assert f'{report["unknown"]} of 1000 captions hold characters that the vocabulary' in printed
    assert "5 in all: '" in printed and 'longer than the 16 tokens that the model' in printed
