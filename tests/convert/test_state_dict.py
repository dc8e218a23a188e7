"""State dicts as people save them: wrapped, nested, among other things; nothing is executed."""

import collections
import os
import pathlib
import re

import numpy as np
import pytest
import safetensors.numpy
from helpers import tiny
from helpers.torch_files import assert_same_files, write_pth

from infinity_jax.convert.names import Naming
from infinity_jax.convert.plan import to_torch
from infinity_jax.convert.state_dict import open_tokenizer, open_transformer
from infinity_jax.errors import UserError


@pytest.fixture(scope='module')
def gpt():
    return to_torch(tiny.TRANSFORMER, tiny.transformer_variables()['params'], Naming(2))


@pytest.fixture(scope='module')
def vae():
    return to_torch(tiny.TOKENIZER, tiny.tokenizer_variables()['params'])


def prefixed(prefix, state):
    return {prefix + name: array for name, array in state.items()}


def inside(wrapper, state):
    """Each block is wrapped: its wrapper shows inside the names."""
    block = re.compile(r'^(block_chunks\.\d+\.module\.\d+\.)')
    return {block.sub(rf'\1{wrapper}', name): array for name, array in state.items()}


WRAPPERS = ('module.', '_orig_mod.', '_fsdp_wrapped_module.', 'model.')
ORDERS = [(a, b) for a in WRAPPERS for b in WRAPPERS] + [('module.', '_orig_mod.', 'module.')]


@pytest.mark.parametrize('wrappers', ORDERS, ids=''.join)
def test_wrappers_in_any_order_and_depth(tmp_path, gpt, vae, wrappers):
    write_pth(tmp_path / 'x.pth', prefixed(''.join(wrappers), gpt))
    assert_same_files(open_transformer(tmp_path / 'x.pth'), gpt)
    write_pth(tmp_path / 'v.pth', {'vae': prefixed(''.join(wrappers), vae)})
    assert_same_files(open_tokenizer(tmp_path / 'v.pth'), vae)


@pytest.mark.parametrize(
    'wrapper',
    ['_fsdp_wrapped_module.', '_checkpoint_wrapped_module.', '_orig_mod.', 'module.',
     '_fsdp_wrapped_module._checkpoint_wrapped_module.'],
)  # fmt: skip
def test_wrappers_inside_the_names(tmp_path, gpt, wrapper):
    write_pth(tmp_path / 'x.pth', prefixed('module.', inside(wrapper, gpt)))
    assert_same_files(open_transformer(tmp_path / 'x.pth'), gpt)


def test_chunks_that_are_wrapped(tmp_path, gpt):
    wrapped = {n.replace('.module.', '._fsdp_wrapped_module.module.'): a for n, a in gpt.items()}
    write_pth(tmp_path / 'x.pth', wrapped)
    assert_same_files(open_transformer(tmp_path / 'x.pth'), gpt)


@pytest.mark.parametrize('key', ['model', 'module', 'state_dict', 'gpt', 'net'])
def test_a_state_dict_under_any_key(tmp_path, gpt, vae, key, capsys):
    write_pth(tmp_path / 'x.pth', {'epoch': 3, key: gpt, 'optimizer': {'state': {}}})
    assert_same_files(open_transformer(tmp_path / 'x.pth'), gpt)
    assert 'x.pth: not read: epoch (int), optimizer (dict)\n' in capsys.readouterr().out
    write_pth(tmp_path / 'v.pth', {key: vae})
    assert_same_files(open_tokenizer(tmp_path / 'v.pth'), vae)
    assert capsys.readouterr().out == ''


def test_keys_that_are_numbers(tmp_path, gpt, capsys):
    write_pth(tmp_path / 'x.pth', {'state': {0: gpt, 1: 'x'}})
    assert_same_files(open_transformer(tmp_path / 'x.pth'), gpt)
    assert capsys.readouterr().out.endswith('not read: state.1 (str)\n')


def test_two_files_with_the_same_names_are_refused(tmp_path, gpt):
    for name in ('a', 'b'):
        safetensors.numpy.save_file(gpt, tmp_path / f'{name}.safetensors')
    with pytest.raises(UserError, match='is in a.safetensors and in b.safetensors; name one file'):
        open_transformer(tmp_path)


def test_what_stands_next_to_the_tensors_is_named(tmp_path, gpt, capsys):
    write_pth(tmp_path / 'x.pth', {**gpt, 'epoch': 3, 'args': {'lr': 1}})
    assert_same_files(open_transformer(tmp_path / 'x.pth'), gpt)
    assert capsys.readouterr().out.endswith('not read: epoch (int), args (dict)\n')


def test_one_file_of_a_whole_training(tmp_path, gpt, vae, capsys):
    average = {name: array + 1 for name, array in gpt.items()}
    trainer = {'gpt_fsdp': gpt, 'gpt_ema_fsdp': average, 'vae_local': vae, 'config': None}
    write_pth(tmp_path / 'x.pth', {'iter': 2, 'trainer': trainer})
    assert_same_files(open_transformer(tmp_path / 'x.pth'), gpt)
    assert 'not read: iter (int), trainer.gpt_ema_fsdp (dict), tr' in capsys.readouterr().out
    assert_same_files(open_transformer(tmp_path / 'x.pth', ema=True), average)
    assert_same_files(open_tokenizer(tmp_path / 'x.pth'), vae)
    write_pth(tmp_path / 'y.pth', {'trainer': {'gpt_ema_fsdp': average}})
    with pytest.raises(UserError, match=r'only moving averages, trainer\.gpt_ema_fsdp; .* --ema'):
        open_transformer(tmp_path / 'y.pth')


def test_several_state_dicts_are_named(tmp_path, gpt):
    write_pth(tmp_path / 'x.pth', {'a': gpt, 'b': {'c': gpt}})
    with pytest.raises(UserError, match='has several state dicts, a, b.c; save one'):
        open_transformer(tmp_path / 'x.pth')


def test_names_that_become_the_same_are_refused(tmp_path, gpt):
    write_pth(tmp_path / 'x.pth', {**gpt, **prefixed('_orig_mod.', gpt)})
    with pytest.raises(UserError, match='names are the same once wrappers'):
        open_transformer(tmp_path / 'x.pth')


class Namespace:
    def __init__(self):
        self.lr = 1e-3


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_harmless_and_evil_extras_become_placeholders(tmp_path, gpt, capsys):
    target = tmp_path / 'made by the pickle'
    extras = {
        'args': Namespace(),
        'best': np.float64(1.0),
        'out': pathlib.PurePosixPath('/x'),
        'names': {1, 2},
        'sums': collections.deque([1]),
        'callbacks': {Namespace: {'best': 3}},
        'evil': Evil(str(target)),
    }
    write_pth(tmp_path / 'x.pth', {**extras, 'trainer': {'gpt_fsdp': gpt}})
    assert_same_files(open_transformer(tmp_path / 'x.pth'), gpt)
    line = capsys.readouterr().out
    assert not target.exists() and line.count('\n') == 1
    assert f'args ({__name__}.Namespace), best (numpy.' in line
    assert re.search(r'evil \((posix|nt)\.mkdir\)', line) and 'callbacks (dict)' in line


def test_a_placeholder_among_the_weights_is_a_missing_weight(tmp_path, gpt, capsys):
    name = 'head.bias'
    write_pth(tmp_path / 'x.pth', {**gpt, name: Evil(str(tmp_path / 'no'))})
    assert set(open_transformer(tmp_path / 'x.pth')) == {*gpt} - {name}
    assert re.search(r'not read: head\.bias \((posix|nt)\.mkdir\)', capsys.readouterr().out)
    assert not (tmp_path / 'no').exists()
