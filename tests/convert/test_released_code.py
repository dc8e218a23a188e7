"""Where exports and the released PyTorch code part: chunks, grids, sizes, fields without shapes."""

import dataclasses
import json
import re

import numpy as np
import pytest
from helpers import tiny
from helpers.models import model_of

from infinity_jax.config import PRESETS, ModelConfigs, TokenizerConfig
from infinity_jax.convert.exporting import to_torch_files
from infinity_jax.convert.importing import from_torch
from infinity_jax.convert.released_code import misfits, released_chunks
from infinity_jax.convert.state_dict import open_transformer
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.weights.model_folder import load_model, save_model

TRANSFORMER = dataclasses.replace(tiny.TRANSFORMER, depth=6, max_scales=15)
TOKENIZER = dataclasses.replace(
    tiny.TOKENIZER, channel_multipliers=(1, 1, 1, 1, 1)
)  # 16 pixels per code, as released
SQUARE_256 = ((1, 1), (2, 2), (4, 4), (6, 6), (8, 8), (12, 12), (16, 16))


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A folder of files that an own model of a free schedule was exported to."""
    folder = tmp_path_factory.mktemp('own')
    loaded = model_of(
        transformer_config=TRANSFORMER,
        transformer_params=tiny.transformer_variables(TRANSFORMER)['params'],
        tokenizer_config=TOKENIZER,
        tokenizer_params=tiny.tokenizer_variables(TOKENIZER)['params'],
        schedule=ScaleSchedule.free(((1, 1), (2, 2), (4, 4))),
    )
    save_model(folder / 'm', loaded)
    to_torch_files(folder / 'm', folder / 'torch')
    return folder


def files(folder):
    return {'transformer': folder / 'transformer.pth', 'tokenizer': folder / 'tokenizer.pth'}


@pytest.mark.parametrize(
    ('name', 'chunks'), [('2b', 8), ('8b', 8), ('125m', 4), ('2.2b', 4), ('4.7b', 4), ('20b', 2)]
)
def test_chunks_are_those_of_the_released_code_or_a_divisor(name, chunks):
    assert released_chunks(PRESETS[name]) == chunks


@pytest.mark.parametrize(('depth', 'chunks'), [(1, 1), (5, 5), (6, 2), (8, 4)])
def test_a_depth_of_its_own_has_a_divisor_above_one(depth, chunks):
    assert released_chunks(dataclasses.replace(TRANSFORMER, depth=depth)) == chunks


def test_an_own_model_is_written_with_more_than_one_chunk(exported):
    names = open_transformer(exported / 'torch/transformer.pth')
    blocks = {m[0] for m in map(re.compile(r'block\w*\.(\d+\.module\.)?\d+').match, names) if m}
    assert blocks == {f'block_chunks.{chunk}.module.{i}' for chunk in (0, 1) for i in range(3)}


def test_the_first_grids_of_a_released_ratio_are_its_prefix(exported, tmp_path, capsys):
    from_torch(tmp_path / 'm', **files(exported / 'torch'), grids=SQUARE_256)
    schedule = load_model(tmp_path / 'm').configs.schedule
    assert schedule == ScaleSchedule.for_image('1.000', '0.06M')
    whole = ScaleSchedule.for_image('1.000', '1M')
    np.testing.assert_array_equal(
        schedule.rope_positions(), whole.rope_positions()[: schedule.num_tokens]
    )
    assert 'count on 64 x 64, the full grid of a released ratio' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('grids', 'full_grid'),
    [
        (((1, 1), (2, 2), (4, 4)), (64, 64)),
        (((1, 1), (2, 2), (4, 3), (8, 6)), (72, 54)),
        (((1, 1), (2, 2)), (2, 2)),  # begins all ratios
        (((1, 1), (2, 2), (3, 3)), (3, 3)),  # begins four
        (((1, 1), (2, 2), (4, 4), (8, 8)), (8, 8)),
    ],
)
def test_positions_count_on_the_full_grid_of_the_only_ratio_that_begins_so(grids, full_grid):
    assert ScaleSchedule.of_released_code(grids) == ScaleSchedule(grids, full_grid)


def test_the_round_trip_keeps_what_shapes_do_not_show(exported, tmp_path, capsys):
    configs = from_torch(tmp_path / 'm', **files(exported / 'torch'))
    own = load_model(exported / 'm').configs
    assert configs.tokenizer == own.tokenizer and configs.transformer == own.transformer
    assert configs.schedule == own.schedule
    assert 'assumed' not in capsys.readouterr().out
    overrides = {'transformer.drop_path': 0.3}
    changed = from_torch(tmp_path / 'n', **files(exported / 'torch'), overrides=overrides)
    assert changed.transformer.drop_path == 0.3
    with pytest.raises(UserError, match='do not belong together'):  # other groups, other bits
        overrides = {'tokenizer.norm_groups': 2}
        from_torch(tmp_path / 'o', **files(exported / 'torch'), overrides=overrides)


def test_files_without_a_record_say_what_is_assumed(exported, tmp_path, capsys):
    for path in files(exported / 'torch').values():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match='norm_groups 32'):  # width 8 has no 32 groups
        from_torch(tmp_path / 'm', **files(tmp_path))
    wide = TokenizerConfig(bits=4, base_channels=32, channel_multipliers=(1,), residual_blocks=1)
    params = tiny.tokenizer_variables(wide)['params']
    save_model(tmp_path / 'wide', model_of(tokenizer_config=wide, tokenizer_params=params))
    to_torch_files(tmp_path / 'wide', tmp_path / 'torch')
    (tmp_path / 'torch/infinity_jax.json').unlink()
    from_torch(tmp_path / 'm', tokenizer=tmp_path / 'torch/tokenizer.pth')
    assert 'norm_groups 32 is assumed, as shapes do not show it' in capsys.readouterr().out


def test_a_damaged_record_is_named(exported, tmp_path):
    for path in files(exported / 'torch').values():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / 'infinity_jax.json').write_text(json.dumps({'format': 'thesis'}))
    with pytest.raises(UserError, match='infinity_jax.json: not written by an export'):
        from_torch(tmp_path / 'm', **files(tmp_path))


def test_a_released_model_fits_the_released_code():
    released = TokenizerConfig()
    for schedule in (None, ScaleSchedule.for_image('0.750', '0.25M')):
        assert misfits(ModelConfigs(PRESETS['2b'], released, schedule=schedule)) == []


def test_one_chunk_is_named_as_a_misfit(exported, capsys):
    to_torch_files(exported / 'm', exported / 'one', chunks=1)
    assert 'the blocks are named in 1 chunks, there 2' in capsys.readouterr().out
    to_torch_files(exported / 'm', exported / 'two')
    assert 'chunks' not in capsys.readouterr().out


def test_sizes_that_the_released_code_fixes_are_named(exported, capsys):
    assert misfits(load_model(exported / 'm').configs) == [
        'tokenizer.norm_groups is 4, there 32',
        'decoder blocks per level is 2, there 3',
        'the grids are not those of a released ratio',
    ]
    small = dataclasses.replace(TRANSFORMER, max_scales=4)
    tokenizer = TokenizerConfig(channel_multipliers=(1,), unshuffle=8, kernel_size=1)
    assert misfits(ModelConfigs(small, tokenizer)) == [
        'transformer.max_scales is 4, there 15',
        'tokenizer.unshuffle is 8, there 1',
        'tokenizer.kernel_size is 1, there 3',
        'pixels per token is 8, there 16',
    ]
    to_torch_files(exported / 'm', exported / 'again')
    assert 'released code does not load this model without changes: ' in capsys.readouterr().out
