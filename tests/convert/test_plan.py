"""The name table: dimensions off the shapes, exact round trips, misfits named together."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import tiny
from helpers.models import assert_same
from helpers.paths import GOLDEN
from helpers.torch_files import assert_same_files, write_pth

from infinity_jax.config import PRESETS, TokenizerConfig, TransformerConfig
from infinity_jax.convert import names as name_table
from infinity_jax.convert.dimensions import read_tokenizer_config
from infinity_jax.convert.names import Naming
from infinity_jax.convert.plan import (
    Plan,
    load_torch_pair,
    load_torch_tokenizer,
    load_torch_transformer,
    to_torch,
)
from infinity_jax.convert.state_dict import open_tokenizer, open_transformer
from infinity_jax.errors import UserError
from infinity_jax.transformer.model import transformer_shapes

PAIRS = {
    'a_2b_style': ('infinity.pth', 'vae.pth', Naming(chunks=2)),
    'b_8b_style': ('infinity_sharded', 'vae.pth', Naming(chunks=4)),
}
CONFIG = dataclasses.replace(tiny.TRANSFORMER, depth=4, dtype='bfloat16', text_channels=256)


@pytest.mark.parametrize('folder', PAIRS)
def test_dimensions_are_read_off_the_shapes(folder):
    transformer, tokenizer, _ = PAIRS[folder]
    loaded = load_torch_pair(GOLDEN / folder / transformer, GOLDEN / folder / tokenizer)
    meta = json.loads((GOLDEN / folder / 'meta.json').read_text())
    stated, config = meta['transformer'], loaded.configs.transformer
    assert (config.depth, config.width, config.num_heads) == (
        stated['depth'],
        stated['width'],
        stated['num_heads'],
    )
    assert config.spatial_patchify == stated['spatial_patchify']
    assert config.text_length == stated['text_max_length']
    assert loaded.configs.tokenizer.bits == config.bits == meta['tokenizer']['codebook_dim']
    assert loaded.configs.tokenizer.stride == meta['tokenizer']['patch_size']


@pytest.mark.parametrize('folder', PAIRS)
def test_import_then_export_gives_the_same_bytes(folder):
    transformer, tokenizer, wanted_naming = PAIRS[folder]
    path = GOLDEN / folder / tokenizer
    config, params = load_torch_tokenizer(path, dtype=None)
    assert_same_files(open_tokenizer(path), to_torch(config, params))
    path = GOLDEN / folder / transformer
    config, params, naming = load_torch_transformer(path, config.bits, dtype=None)
    assert naming == wanted_naming
    assert_same_files(open_transformer(path), to_torch(config, params, naming))


@pytest.mark.parametrize('naming', [Naming(1, 1), Naming(4, 2), Naming(2, 1)])
def test_every_naming_comes_back(tmp_path, naming):
    params = tiny.transformer_variables(CONFIG)['params']
    arrays = to_torch(CONFIG, params, naming)
    some = 'blocks.3.sa' if naming.chunks == 1 else f'block_chunks.{naming.chunks - 1}.module.'
    assert any(name.startswith(some) for name in arrays)
    write_pth(tmp_path / 'x.pth', arrays)
    config, again, found = load_torch_transformer(tmp_path / 'x.pth', CONFIG.bits)
    assert found == naming and config == CONFIG
    assert_same(again, params)


def test_linear_and_convolution_layouts():
    params = tiny.transformer_variables(CONFIG)['params']
    arrays = to_torch(CONFIG, params)
    kernel = params['blocks']['self_attention']['qkv']['kernel']
    np.testing.assert_array_equal(arrays['blocks.2.sa.mat_qkv.weight'], kernel[2].T)
    assert arrays['blocks.0.ada_gss'].shape == (1, 1, 6, CONFIG.width)
    assert not arrays['blocks.1.sa.zero_k_bias'].any()
    tokenizer = tiny.tokenizer_variables()['params']
    arrays = to_torch(tiny.TOKENIZER, tokenizer)
    kernel = np.asarray(tokenizer['encoder']['conv_in']['kernel'])
    weight = arrays['encoder.conv_in.conv.weight']
    assert weight[5, 2, 0, 1] == kernel[0, 1, 2, 5]
    np.testing.assert_array_equal(arrays['quantize.lfq.mask'], [8, 4, 2, 1])


def test_bit_values_wrap_as_int64_does():
    values = name_table.bit_values(np.zeros(66))
    assert values.dtype == np.int64
    assert values[:3].tolist() == [0, 0, -(2**63)] and values[-2:].tolist() == [2, 1]


@pytest.mark.parametrize('preset', PRESETS)
def test_every_preset_has_a_torch_name_for_each_weight(preset):
    config = PRESETS[preset]
    shapes = transformer_shapes(config)
    flat = {
        '.'.join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    naming = Naming(8 if config.depth % 8 == 0 else 1)
    entries = name_table.entries(name_table.TRANSFORMER, flat, naming)
    buffers = name_table.buffer_names(name_table.TRANSFORMER_BUFFERS, config.depth, naming)
    names = [entry.torch for entry in entries] + list(buffers)
    assert len(set(names)) == len(names) == 22 + 21 * config.depth


# How the lists of names in golden/checkpoint_keys.json come about.
D14 = TokenizerConfig(bits=14, channel_multipliers=(1, 2, 4, 4))
RELEASED = {
    'infinity_2b': (PRESETS['2b'], 694),
    'infinity_8b_first_two_of_40_blocks': (dataclasses.replace(PRESETS['8b'], depth=2), 64),
    'vae_d32_patch16': (TokenizerConfig(bits=32), 270),
    'vae_d14_patch8': (D14, 226),
}


@pytest.mark.parametrize('file', RELEASED)
def test_names_and_shapes_are_those_of_the_released_files(file):
    listed = json.loads((GOLDEN / 'checkpoint_keys.json').read_text())[file]
    config, count = RELEASED[file]
    chunks = 8 if file == 'infinity_2b' else 1
    specs = Plan.of(config, Naming(chunks)).torch_specs(lambda *_: np.float32)
    assert {name: list(spec.shape) for name, spec in specs.items()} == listed
    assert len(listed) == count


@pytest.mark.parametrize(
    'config',
    [
        TokenizerConfig(4, 32, (1, 2)),
        TokenizerConfig(4, 32, (1, 2), decoder_blocks=5),
        TokenizerConfig(4, 32, (1,), unshuffle=8, kernel_size=1),
    ],
)
def test_tokenizers_of_other_sizes_are_read_off_the_shapes(config):
    specs = Plan.of(config, Naming()).torch_specs(lambda *_: np.float32)
    assert read_tokenizer_config(specs) == config


def test_wrappers_and_training_checkpoints(tmp_path):
    params = tiny.transformer_variables(CONFIG)['params']
    average = tiny.transformer_variables(CONFIG, seed=1)['params']
    states = [to_torch(CONFIG, p, Naming(2)) for p in (params, average)]
    content = {'epoch': 1, 'trainer': {'gpt_fsdp': states[0], 'gpt_ema_fsdp': states[1]}}
    write_pth(tmp_path / 'train.pth', content)
    assert_same(load_torch_transformer(tmp_path / 'train.pth', CONFIG.bits)[1], params)
    assert_same(load_torch_transformer(tmp_path / 'train.pth', CONFIG.bits, ema=True)[1], average)
    write_pth(tmp_path / 'x.pth', {f'module.{n}': a for n, a in states[0].items()})
    assert_same(load_torch_transformer(tmp_path / 'x.pth', CONFIG.bits)[1], params)
    with pytest.raises(UserError, match='without a moving average'):
        open_transformer(tmp_path / 'x.pth', ema=True)

    tokenizer = tiny.tokenizer_variables()['params']
    state = to_torch(tiny.TOKENIZER, tokenizer)
    write_pth(tmp_path / 'vae.pth', {'vae': {}, 'ema': state})
    config, again = load_torch_tokenizer(tmp_path / 'vae.pth', norm_groups=4)
    assert config == tiny.TOKENIZER
    assert_same(again, tokenizer)
    safetensors.numpy.save_file(state, tmp_path / 'vae.safetensors')
    assert_same(load_torch_tokenizer(tmp_path / 'vae.safetensors', norm_groups=4)[1], tokenizer)
    with pytest.raises(UserError, match='divides by neither norm_groups 32'):
        load_torch_tokenizer(tmp_path / 'vae.safetensors')
    write_pth(tmp_path / 'other.pth', {'gan': {'weight': np.ones(2, np.float32)}, 'epoch': 3})
    with pytest.raises(
        UserError, match=r'wanted a state dict .* holds gan \(dict\), epoch \(int\)'
    ):
        load_torch_tokenizer(tmp_path / 'other.pth')


def test_everything_wrong_is_named_at_once(tmp_path):
    arrays = to_torch(CONFIG, tiny.transformer_variables(CONFIG)['params'])
    arrays['pos_start'] = np.zeros((1, 1, 7), np.float32)
    del arrays['blocks.2.ffn.fc1.bias']
    arrays['blocks.1.ca.gamma'] = np.zeros(3, np.float32)
    arrays['blocks.0.sa.zero_k_bias'] = arrays['blocks.0.sa.zero_k_bias'] + 1
    safetensors.numpy.save_file(arrays, tmp_path / 'x.safetensors')
    with pytest.raises(UserError) as caught:
        load_torch_transformer(tmp_path / 'x.safetensors', CONFIG.bits)
    for part in (
        'pos_start has shape (1, 1, 7), wanted (1, 1, 32)',
        'missing blocks.2.ffn.fc1.bias',
        'unknown blocks.1.ca.gamma (3,)',
        'buffer blocks.0.sa.zero_k_bias',
    ):
        assert part in str(caught.value)
    assert '\n' not in str(caught.value)


def save_pair(folder, transformer: TransformerConfig, tokenizer: TokenizerConfig):
    params = tiny.transformer_variables(transformer)['params']
    arrays = to_torch(transformer, params)
    safetensors.numpy.save_file(arrays, folder / 'infinity.safetensors')
    arrays = to_torch(tokenizer, tiny.tokenizer_variables(tokenizer)['params'])
    safetensors.numpy.save_file(arrays, folder / 'vae.safetensors')
    return folder / 'infinity.safetensors', folder / 'vae.safetensors'


def test_patchify_is_read_off_the_pair(tmp_path):
    pair = save_pair(tmp_path, dataclasses.replace(CONFIG, bits=16), tiny.TOKENIZER)
    loaded = load_torch_pair(*pair, token_stride=4, norm_groups=4)
    assert loaded.configs.transformer.spatial_patchify and loaded.configs.transformer.bits == 4


def test_a_pair_that_does_not_fit_is_refused(tmp_path):
    pair = save_pair(tmp_path, dataclasses.replace(CONFIG, bits=56), tiny.TOKENIZER)
    with pytest.raises(UserError, match='56 bits, a code of this tokenizer 4'):
        load_torch_pair(*pair, norm_groups=4)
    pair = save_pair(tmp_path, CONFIG, tiny.TOKENIZER)
    with pytest.raises(UserError, match='stride 2 put a token on 2 pixels.*expects 16'):
        load_torch_pair(*pair, norm_groups=4)


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(UserError, match='no transformer blocks'):
        load_torch_transformer(GOLDEN / 't5_tiny')
    with pytest.raises(UserError, match='no such file'):
        load_torch_tokenizer(tmp_path / 'absent.pth')
    with pytest.raises(UserError, match='no weights there'):
        load_torch_transformer(tmp_path)


def test_weights_of_whole_numbers_are_refused(tmp_path):
    state = {name: t.read() for name, t in open_tokenizer(GOLDEN / 'a_2b_style/vae.pth').items()}
    name = next(name for name in state if name.endswith('conv_in.conv.weight'))
    for dtype in ('int64', 'bool'):
        write_pth(tmp_path / 'x.pth', {**state, name: state[name].astype(dtype)})
        with pytest.raises(UserError, match=f'{name} has whole numbers of type {dtype}, wanted fl'):
            load_torch_tokenizer(tmp_path / 'x.pth', norm_groups=2)


@pytest.mark.parametrize('found', [{'vae': 5}, {'vae': [1]}, {'trainer': 5}, {'state_dict': 'x'}])
def test_what_is_no_state_dict_is_named(tmp_path, found):
    write_pth(tmp_path / 'x.pth', found)
    with pytest.raises(
        UserError, match=r'wanted a state dict of tensors.*; holds \w+ \((int|list|str)\)'
    ):
        open_tokenizer(tmp_path / 'x.pth')
