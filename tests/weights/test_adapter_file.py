"""Adapters written, read, and merged into a model folder."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers.models import model_of
from helpers.tiny import TRANSFORMER, lively, transformer_variables

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.transformer.lora import LoraConfig, init_adapters, merge, updates_of
from infinity_jax.transformer.model import transformer_shapes
from infinity_jax.weights.adapter_file import load_adapter, merge_into_folder, save_adapter
from infinity_jax.weights.model_folder import load_model, save_model

CONFIG = LoraConfig(rank=2, alpha=3.0, matrices=('ffn', 'self_attention.out'))


def adapters_of(transformer):
    shapes = transformer_shapes(transformer, boxed=True)
    start = jax.eval_shape(lambda key: init_adapters(key, shapes, CONFIG), jax.random.key(0))
    return lively(nn.unbox(start), seed=1)


@pytest.fixture
def files(tmp_path):
    base = model_of(
        transformer_config=TRANSFORMER, transformer_params=transformer_variables()['params']
    )
    save_model(tmp_path / 'base', base)
    save_adapter(tmp_path / 'adapter.safetensors', adapters_of(TRANSFORMER), CONFIG)
    return tmp_path


def test_a_file_says_what_it_is(files):
    config, adapters = load_adapter(files / 'adapter.safetensors')
    assert config.targets == CONFIG.targets and (config.rank, config.alpha) == (2, 3.0)
    jax.tree.map(np.testing.assert_array_equal, adapters, adapters_of(TRANSFORMER))
    assert (files / 'adapter.safetensors').stat().st_size < 25_000


def test_the_command_merges(files):
    main([
        'convert', 'merge-lora', '--checkpoint', str(files / 'base'),
        '--adapter', str(files / 'adapter.safetensors'), '--out', str(files / 'merged'),
    ])  # fmt: skip
    base = jax.tree.map(np.asarray, transformer_variables()['params'])
    wanted = merge(base, updates_of(adapters_of(TRANSFORMER), CONFIG))
    merged = load_model(files / 'merged').transformer_params
    jax.tree.map(np.testing.assert_array_equal, merged, wanted)


def test_what_does_not_fit_is_refused(files):
    wider = dataclasses.replace(TRANSFORMER, width=64)
    save_adapter(files / 'wide.safetensors', adapters_of(wider), CONFIG)
    with pytest.raises(UserError, match='wide.safetensors: self_attention.out has A, B of shapes'):
        merge_into_folder(files / 'base', [files / 'wide.safetensors'], files / 'merged')
    other_rank = dataclasses.replace(CONFIG, rank=4)
    save_adapter(files / 'rank.safetensors', adapters_of(TRANSFORMER), other_rank)
    with pytest.raises(UserError, match='rank.safetensors: .* lora.rank is 4: copy the file again'):
        merge_into_folder(files / 'base', [files / 'rank.safetensors'], files / 'merged')
    flat = jax.tree.map(np.ravel, adapters_of(TRANSFORMER))
    save_adapter(files / 'flat.safetensors', flat, CONFIG)
    with pytest.raises(UserError, match='flat.safetensors: .* lora.rank is 2: copy the file again'):
        merge_into_folder(files / 'base', [files / 'flat.safetensors'], files / 'merged')
    fewer = {'ffn': {'up': adapters_of(TRANSFORMER)['ffn']['up']}}
    save_adapter(files / 'fewer.safetensors', fewer, CONFIG)
    with pytest.raises(UserError, match='fewer.safetensors: has ffn.up.a, ffn.up.b; wanted'):
        merge_into_folder(files / 'base', [files / 'fewer.safetensors'], files / 'merged')
    safetensors.numpy.save_file({'x': np.zeros(1)}, files / 'other.safetensors')
    with pytest.raises(UserError, match='other.safetensors: holds no adapters'):
        load_adapter(files / 'other.safetensors')
    with pytest.raises(UserError, match='none.safetensors: cannot be read'):
        load_adapter(files / 'none.safetensors')
    assert not (files / 'merged').exists()


def test_a_folder_of_something_else_is_kept(files, capsys):
    (files / 'mine').mkdir()
    (files / 'mine' / 'letter.txt').write_text('dear')
    arguments = ['--checkpoint', str(files / 'base'), '--adapter', 'adapter.safetensors']
    with pytest.raises(SystemExit):
        main(['convert', 'merge-lora', *arguments, '--out', str(files / 'mine')])
    assert 'is not a model folder' in capsys.readouterr().err
