"""Model folders: what is saved comes back, and a failed save harms nothing."""

import dataclasses
import json
import math
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import paths, tiny
from helpers.generation import small_model
from helpers.models import assert_same, changed, model_of

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.weights import model_folder
from infinity_jax.weights.model_folder import (
    LATER_FIELDS,
    load_model,
    read_configs,
    save_model,
    write_description,
)
from infinity_jax.weights.t5_folder import load_encoder

T5 = paths.GOLDEN / 't5_tiny'
TYPES = {'transformer': TransformerConfig, 'tokenizer': TokenizerConfig, 'schedule': ScaleSchedule}
# Part -> the fields that every folder has.
FIELDS = {
    part: {field.name for field in dataclasses.fields(kind)} - {*LATER_FIELDS}
    for part, kind in TYPES.items()
}


def make_model(seed=0):
    text_config, text_params = load_encoder(T5)
    config = dataclasses.replace(tiny.TRANSFORMER, text_channels=text_config.width)
    return model_of(
        transformer_config=config,
        transformer_params=tiny.transformer_variables(config, seed)['params'],
        tokenizer_config=tiny.TOKENIZER,
        tokenizer_params=tiny.tokenizer_variables(seed=seed)['params'],
        text_config=text_config,
        text_params=text_params,
        schedule=ScaleSchedule.free(((1, 1), (2, 2))),
        extra={'made by': 'a test'},
    )


@pytest.fixture
def model():
    return make_model()


def test_comes_back_as_it_was(model, tmp_path):
    save_model(tmp_path / 'new' / 'model', model)
    loaded = load_model(tmp_path / 'new' / 'model')
    assert loaded.configs == model.configs
    for field in ('transformer_params', 'tokenizer_params', 'text_params'):
        assert_same(getattr(loaded, field), getattr(model, field))
    assert os.listdir(tmp_path / 'new') == ['model']  # nothing temporary left


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_stored_dtype(model, tmp_path, dtype):
    save_model(tmp_path / 'm', model, dtype)
    rounded = jax.tree.map(lambda a: np.asarray(a).astype(jnp.dtype(dtype)), model.text_params)
    kept = load_model(tmp_path / 'm', dtype=None)
    assert kept.transformer_params['head']['kernel'].dtype == jnp.dtype(dtype)
    assert_same(kept.text_params, rounded)
    wide = load_model(tmp_path / 'm').text_params
    assert_same(wide, jax.tree.map(lambda a: a.astype(np.float32), rounded))


def test_parts_may_be_absent_or_passed_over(model, tmp_path):
    only = model_of(
        tokenizer_config=model.configs.tokenizer, tokenizer_params=model.tokenizer_params
    )
    save_model(tmp_path / 'tokenizer', only)
    loaded = load_model(tmp_path / 'tokenizer')
    assert_same(loaded.tokenizer_params, model.tokenizer_params)
    assert loaded.configs.transformer is None and loaded.text_params is None
    save_model(tmp_path / 'whole', model)
    part = load_model(tmp_path / 'whole', parts=('tokenizer',))
    assert part.transformer_params is None and part.tokenizer_params is not None


def test_everything_wrong_is_named_at_once(model, tmp_path):
    save_model(tmp_path / 'm', model)
    path = tmp_path / 'm' / 'transformer.safetensors'
    tensors = safetensors.numpy.load_file(path)
    del tensors['first_token']
    tensors['head.bias'] = np.zeros(3, np.float32)
    tensors['surprise'] = np.zeros(1, np.float32)
    safetensors.numpy.save_file(tensors, path)
    (tmp_path / 'm' / 'tokenizer.safetensors').unlink()
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / 'm')
    for part in (
        'missing first_token (32,)',
        'unknown surprise',
        'head.bias has shape (3,), wanted (8,)',
        'tokenizer.safetensors: no such file',
    ):
        assert part in str(caught.value)
    assert '\n' not in str(caught.value)


def test_parts_that_do_not_fit_are_refused(model, tmp_path):
    config = dataclasses.replace(tiny.TOKENIZER, bits=6)
    params = tiny.tokenizer_variables(config)['params']
    save_model(tmp_path / 'm', changed(model, tokenizer_config=config, tokenizer_params=params))
    with pytest.raises(UserError, match='4 bits, the tokenizer has 6'):
        load_model(tmp_path / 'm')


def test_no_model_and_bad_descriptions(model, tmp_path):
    with pytest.raises(UserError, match='nothing: no such folder'):
        load_model(tmp_path / 'nothing')
    with pytest.raises(UserError, match='no config.json there'):
        load_model(tmp_path)
    save_model(tmp_path / 'm', model)
    path = tmp_path / 'm' / 'config.json'
    described = json.loads(path.read_text())
    described['transformer']['widht'] = 3
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match='did you mean transformer.width'):
        load_model(tmp_path / 'm')
    path.write_text('{"format": "other"}')
    with pytest.raises(UserError, match="'other'"):
        load_model(tmp_path / 'm')
    path.write_text('{')
    with pytest.raises(UserError, match='not readable JSON'):
        load_model(tmp_path / 'm')


def test_a_lost_field_does_not_become_its_default(model, tmp_path):
    save_model(tmp_path / 'm', model)
    path = tmp_path / 'm' / 'config.json'
    text = path.read_text()
    for part in ('transformer', 'tokenizer', 'schedule'):
        for field in json.loads(text)[part]:
            described = json.loads(text)
            del described[part][field]
            path.write_text(json.dumps(described))
            if field in LATER_FIELDS:
                assert read_configs(tmp_path / 'm') == model.configs
                continue
            with pytest.raises(UserError, match=f'm/config.json: .*lacks .*{field}'):
                read_configs(tmp_path / 'm')
    described = json.loads(text)
    described['transformer']['levels'] = described['transformer'].pop('max_scales')  # version 0.1
    path.write_text(json.dumps(described))
    assert read_configs(tmp_path / 'm') == model.configs


def test_misfit_or_overflow_is_not_saved(model, tmp_path):
    save_model(tmp_path / 'm', model)
    bad = dataclasses.replace(model, transformer_params={})
    with pytest.raises(UserError, match='missing'):
        save_model(tmp_path / 'm', bad)
    huge = jax.tree.map(lambda a: a * 1e6, model.tokenizer_params)
    with pytest.raises(UserError, match='beyond float16'):
        save_model(tmp_path / 'm', dataclasses.replace(model, tokenizer_params=huge), 'float16')
    with pytest.raises(UserError, match='int8'):
        save_model(tmp_path / 'm', model, 'int8')
    assert_same(load_model(tmp_path / 'm').tokenizer_params, model.tokenizer_params)


def test_full_disk_keeps_the_old_model(model, tmp_path, monkeypatch):
    save_model(tmp_path / 'm', model)

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(model_folder, 'save_encoder', full)
    with pytest.raises(UserError, match='No space left.*old one is kept'):
        save_model(tmp_path / 'm', make_model(seed=1))
    assert_same(load_model(tmp_path / 'm').transformer_params, model.transformer_params)
    assert os.listdir(tmp_path) == ['m']


def test_cut_off_between_the_renames_keeps_a_model(model, tmp_path, monkeypatch):
    save_model(tmp_path / 'm', model)
    rename = os.rename

    def die_at_second(source, target):
        if pathlib.Path(target) == tmp_path / 'm':
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, 'rename', die_at_second)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / 'm', make_model(seed=1))
    monkeypatch.undo()
    assert_same(load_model(tmp_path / 'm').transformer_params, model.transformer_params)
    newer = make_model(seed=2)
    save_model(tmp_path / 'm', newer)
    assert_same(load_model(tmp_path / 'm').transformer_params, newer.transformer_params)
    assert os.listdir(tmp_path) == ['m']


BAD_VALUES = [
    ('transformer', None), ('transformer', 'big'), ('transformer', [1]), ('tokenizer', 7),
    ('schedule', None), ('schedule', '1.000'), ('schedule', []), ('source', []), ('extra', 'x'),
    ('transformer.depth', None), ('transformer.depth', True), ('transformer.depth', 10**7),
    ('transformer.depth', -1), ('transformer.depth', 2.0), ('transformer.width', 10**23),
    ('transformer.mlp_ratio', math.nan), ('transformer.mlp_ratio', math.inf),
    ('transformer.mlp_ratio', -1), ('transformer.mlp_ratio', True), ('transformer.drop_path', -1),
    ('transformer.text_length', 10**9), ('transformer.max_scales', 1), ('transformer.dtype', 3),
    ('tokenizer.residual_blocks', 10**7), ('tokenizer.decoder_blocks', 10**7),
    ('tokenizer.channel_multipliers', 3), ('tokenizer.channel_multipliers', [1, 10**9]),
    ('tokenizer.norm_groups', 0), ('tokenizer.bits', 10**9), ('schedule.grids', None),
    ('schedule.grids', [[1, 1], [10**9, 10**9]]), ('schedule.grids', [[1, 1], 'ab']),
    ('schedule.full_grid', [0, 0]), ('schedule.full_grid', 4),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'value'), BAD_VALUES, ids=str)
def test_a_field_that_is_damaged_is_named(model, tmp_path, name, value):
    write_description(tmp_path, model.configs)
    path = tmp_path / 'config.json'
    described = json.loads(path.read_text())
    *groups, last = name.split('.')
    node = described
    for group in groups:
        node = node[group]
    node[last] = value
    path.write_text(json.dumps(described))
    start = time.monotonic()
    with pytest.raises(UserError, match=f'{tmp_path}.*{last}|{tmp_path}.*schedule') as caught:
        read_configs(tmp_path)
    assert time.monotonic() - start < 2
    assert '\n' not in str(caught.value)


def test_deeply_nested_json_is_one_line(tmp_path):
    (tmp_path / 'config.json').write_text('{"a": ' * 10**5)
    with pytest.raises(UserError, match='not readable JSON'):
        read_configs(tmp_path)


def edit_config(folder, change):
    path = folder / 'config.json'
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize('part', TYPES)
def test_a_field_that_is_absent_is_refused(model, tmp_path, part):
    save_model(tmp_path / 'm', model)
    written = json.loads((tmp_path / 'm' / 'config.json').read_text())
    assert set(written[part]) - {*LATER_FIELDS} == FIELDS[part]
    for name in sorted(FIELDS[part]):
        save_model(tmp_path / 'm', model)
        edit_config(tmp_path / 'm', lambda fields, name=name: fields[part].pop(name))
        with pytest.raises(UserError, match=f'{part} lacks {name}, with which'):
            load_model(tmp_path / 'm')


def test_fields_by_old_names_are_no_absent_ones(model, tmp_path):
    save_model(tmp_path / 'm', model)
    renamed = lambda fields: fields['transformer'].update(
        levels=fields['transformer'].pop('max_scales')
    )
    edit_config(tmp_path / 'm', renamed)
    assert load_model(tmp_path / 'm').configs == load_model(tmp_path / 'm').configs
    edit_config(tmp_path / 'm', lambda fields: fields['transformer'].update(max_scales=15))
    with pytest.raises(UserError, match='transformer.max_scales is given twice, .* name levels'):
        load_model(tmp_path / 'm')


def test_a_field_that_is_there_twice_is_refused(model, tmp_path):
    save_model(tmp_path / 'm', model)
    path = tmp_path / 'm' / 'config.json'
    path.write_text(path.read_text().replace('"depth"', '"depth": 1, "depth"'))
    with pytest.raises(UserError, match="config.json: not readable JSON .'depth' is there twice"):
        load_model(tmp_path / 'm')


def test_a_changed_vocabulary_is_refused_by_its_hash(tmp_path):
    folder = tmp_path / 'm'
    save_model(folder, small_model())
    for name in ('tokenizer.json', 'config.json'):
        path = folder / 'text_encoder' / name
        content = path.read_bytes()
        path.write_bytes(content + b' ')
        with pytest.raises(UserError, match=f'text_encoder/{name} is damaged: it has the hash'):
            load_model(folder)
        load_model(folder, verify=False)
        path.write_bytes(content)
    (folder / 'text_encoder' / 'tokenizer.json').write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match='tokenizer.json is not a tokenizer'):
        load_model(folder, verify=False)
    (folder / 'text_encoder' / 'tokenizer.json').unlink()
    with pytest.raises(UserError, match='has the hash no file'):
        load_model(folder)
    save_model(folder, small_model())
    edit_config(folder, lambda fields: fields.pop('files'))  # as in older folders
    load_model(folder)
    edit_config(folder, lambda fields: fields.update(files=[1]))
    with pytest.raises(UserError, match='files is .1.; wanted path -> hash'):
        load_model(folder)


@pytest.mark.parametrize('shard', [1, None, ['x'], '', '../x', 'a/b', 'a\0b', {}])
def test_an_index_that_names_no_shard(model, tmp_path, shard):
    save_model(tmp_path / 'm', model)
    index = tmp_path / 'm' / 'transformer.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': {'x': shard}}))
    with pytest.raises(UserError, match='wanted a file in the same folder'):
        load_model(tmp_path / 'm')
    index.write_text('{"weight_map": {}}')
    with pytest.raises(UserError, match='has no weight_map'):
        load_model(tmp_path / 'm')
