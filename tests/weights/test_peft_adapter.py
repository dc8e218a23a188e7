"""Adapters in PEFT's layout: a round trip, and what cannot be applied is refused."""

import json
import math
import re

import numpy as np
import pytest
import safetensors.numpy

from infinity_jax.cli import main
from infinity_jax.config import TransformerConfig
from infinity_jax.convert.names import TRANSFORMER
from infinity_jax.errors import UserError
from infinity_jax.tools.commands.generation_flags import adapter_path
from infinity_jax.transformer.lora import MATRICES, LoraConfig, updates_of
from infinity_jax.transformer.model import transformer_shapes
from infinity_jax.weights.adapter_file import (
    FILE_NAME,
    Adapter,
    load_adapter,
    read_updates,
    save_adapter,
)
from infinity_jax.weights.peft_adapter import CONFIG_NAME, MODULES, WEIGHTS_NAME, save_peft

SIZES = TransformerConfig(
    depth=4, width=8, num_heads=2, bits=4, text_channels=8, text_length=4, dtype='float32'
)
CONFIG = LoraConfig(rank=2, alpha=3.0, matrices=('self_attention', 'ffn.down'))


def adapters(config=CONFIG):
    rng = np.random.default_rng(0)
    shapes = transformer_shapes(SIZES)['blocks']
    tree = {}
    for name in config.targets:
        outer, inner = name.split('.')
        layers, inputs, outputs = shapes[outer][inner]['kernel'].shape
        a, b = (layers, inputs, config.rank), (layers, config.rank, outputs)
        halves = {'a': rng.standard_normal(a, 'f'), 'b': rng.standard_normal(b, 'f')}
        tree.setdefault(outer, {})[inner] = halves
    return tree


def assert_equal(ours, wanted):
    assert ours.keys() == wanted.keys()
    for name in wanted:
        for a, b in zip(ours[name], wanted[name], strict=True):
            np.testing.assert_array_equal(a, b)


def changed(folder, **fields):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def folder(tmp_path):
    save_peft(tmp_path / 'peft', adapters(), CONFIG, base='org/base', chunks=2)
    return tmp_path / 'peft'


def test_the_names_are_those_of_the_released_model():
    rules = {rule.torch: rule.ours for rule in TRANSFORMER}
    assert sorted(MODULES.values()) == sorted(MATRICES)
    for torch, ours in MODULES.items():
        assert rules[f'{{block}}.{torch}.weight'] == f'blocks.{ours}.kernel'


def test_the_layout(folder):
    described = json.loads((folder / CONFIG_NAME).read_text())
    assert described['peft_type'] == 'LORA' and described['base_model_name_or_path'] == 'org/base'
    assert (described['r'], described['lora_alpha']) == (2, 3)
    tensors = safetensors.numpy.load_file(folder / WEIGHTS_NAME)
    assert len(tensors) == 3 * 4 * 2
    third = 'base_model.model.block_chunks.1.module.0.sa.mat_qkv.'
    ours = adapters()['self_attention']['qkv']
    np.testing.assert_array_equal(tensors[f'{third}lora_A.weight'], ours['a'][2].T)
    np.testing.assert_array_equal(tensors[f'{third}lora_B.weight'], ours['b'][2].T)
    targets = re.compile(described['target_modules'])
    assert targets.fullmatch('block_chunks.1.module.0.sa.proj')
    assert not targets.fullmatch('block_chunks.1.module.0.ca.proj')
    assert not targets.fullmatch('text_proj_for_sos.ca.proj')


@pytest.mark.parametrize('chunks', [1, 2, 4])
def test_a_round_trip(tmp_path, chunks):
    save_peft(tmp_path / 'peft', adapters(), CONFIG, chunks=chunks)
    for path in ('peft', f'peft/{WEIGHTS_NAME}', f'peft/{CONFIG_NAME}'):
        config, read = load_adapter(tmp_path / path)
        assert (config.rank, config.alpha, config.targets) == (2, 3.0, CONFIG.targets)
        assert_equal(updates_of(read, config), updates_of(adapters(), CONFIG))


def test_strengths_and_sums(folder, tmp_path):
    save_adapter(tmp_path / FILE_NAME, adapters(), CONFIG)
    ours = read_updates([f'{folder}:0.5', f'{tmp_path}:-1.5'], SIZES)['ffn.down']
    single = updates_of(adapters(), CONFIG)['ffn.down']
    assert ours.a.shape == (4, 256, 4)
    np.testing.assert_allclose(ours.a @ ours.b, -(single.a @ single.b), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match='strength is inf; wanted a finite number'):
        read_updates([f'{folder}:inf'], SIZES)


def test_the_scale_of_rslora(folder):
    changed(folder, use_rslora=True)
    config, _ = load_adapter(folder)
    assert config.scale == pytest.approx(3 / 2**0.5)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'peft_type': 'LOHA'}, "peft_type is 'LOHA'; wanted 'LORA'"),
        ({'use_dora': True}, 'use_dora is True; wanted False: only plain LoRA'),
        ({'fan_in_fan_out': True}, 'fan_in_fan_out is True'),
        ({'bias': 'all'}, "bias is 'all'; wanted 'none'"),
        ({'modules_to_save': ['head']}, r"modules_to_save is \['head'\]"),
        ({'rank_pattern': {'fc1': 4}}, "rank_pattern is {'fc1': 4}"),
        ({'init_lora_weights': 'pissa'}, "init_lora_weights is 'pissa'; wanted True"),
        ({'r': 0}, 'r is 0; wanted a whole number'),
        ({'r': 100_000}, 'r is 100000; wanted a whole number from 1 to 8192: copy the file again'),
        ({'lora_alpha': None}, r'lora_alpha is None; wanted a number from 0 to 1e\+06'),
        ({'lora_alpha': math.nan}, 'lora_alpha is nan; wanted'),
        ({'lora_alpha': -3}, 'lora_alpha is -3; wanted'),
        ({'lora_alpha': 1e9}, 'lora_alpha is 1000000000.0; wanted'),
        ({'lora_alpha': 8e5, 'use_rslora': True}, 'lora_alpha is 800000.0; wanted'),
    ],
)
def test_other_kinds_are_refused(folder, fields, message):
    changed(folder, **fields)
    with pytest.raises(UserError, match=f'{CONFIG_NAME}: {message}'):
        load_adapter(folder)


def test_other_tensors_are_refused(folder):
    path = folder / WEIGHTS_NAME
    tensors = safetensors.numpy.load_file(path)

    def refused(message, **changes):
        names = {name.replace('__', '.'): array for name, array in changes.items()}
        kept = {n: a for n, a in {**tensors, **names}.items() if a is not None}
        safetensors.numpy.save_file(kept, path)
        with pytest.raises(UserError, match=message):
            read_updates([folder], SIZES)

    one = 'base_model.model.block_chunks.0.module.1.sa.proj.lora_A.weight'
    refused(
        'word_embed.lora_A.weight is not an adapter of a matrix that can have one here; wanted '
        'sa.mat_qkv',
        **{'base_model.model.word_embed.lora_A.weight': np.zeros((2, 4), 'f')},
    )
    refused('self_attention.out.a lacks 1 of 4 blocks, the first is 1', **{one: None})
    refused(r'has shapes \[\(8, 2\), \(9, 2\)\]', **{one: np.zeros((2, 9), 'f')})
    refused('has NaN, infinity', **{one: np.full((2, 8), np.nan, 'f')})
    safetensors.numpy.save_file(tensors, path)
    changed(folder, r=3)
    with pytest.raises(UserError, match=f'has rank 2, but r is 3 in {CONFIG_NAME}; wanted'):
        read_updates([folder], SIZES)
    path.rename(folder / 'adapter_model.bin')
    with pytest.raises(UserError, match=f'{WEIGHTS_NAME}: no such file; .* safe_serialization'):
        load_adapter(folder)


def test_a_name_that_ends_as_a_strength_does(folder):
    named = str(folder.rename(folder.with_name('run_12:30')))
    assert Adapter.parse(named) == Adapter(named) and adapter_path(named) == named
    assert Adapter.parse(f'{named}:0.5') == Adapter(named, 0.5)
    assert adapter_path(f'{named}:0.5') == f'{named}:0.5'
    assert load_adapter(Adapter.parse(named).path)[0].rank == 2


def test_a_folder_without_adapters(tmp_path):
    with pytest.raises(UserError, match=f'holds neither {FILE_NAME} nor {CONFIG_NAME} of PEFT'):
        load_adapter(tmp_path)


def test_the_command(tmp_path, capsys):
    (tmp_path / 'base').mkdir()
    sizes = {k: v for k, v in vars(SIZES).items()}
    described = {'format': 'infinity_jax', 'version': 1, 'transformer': sizes, 'extra': {}}
    (tmp_path / 'base' / 'config.json').write_text(json.dumps(described))
    save_adapter(tmp_path / FILE_NAME, adapters(), CONFIG)
    arguments = ['--checkpoint', str(tmp_path / 'base'), '--adapter', str(tmp_path / FILE_NAME)]
    out = tmp_path / 'peft'
    main(['convert', 'to-peft', *arguments, '--base-model', 'org/base', '--out', str(out)])
    assert capsys.readouterr().out == f'wrote {out}\n'
    config, read = load_adapter(out)
    assert_equal(updates_of(read, config), updates_of(adapters(), CONFIG))
    assert any(
        'block_chunks.3.module.0' in n for n in safetensors.numpy.load_file(out / WEIGHTS_NAME)
    )
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'letter.txt').write_text('dear')
    for out, flags, message in (
        (tmp_path / 'mine', [], 'exists and holds no adapters'),
        (tmp_path / 'other', ['--chunks', '3'], '--chunks 3 does not divide the 4 blocks'),
    ):
        with pytest.raises(SystemExit):
            main(['convert', 'to-peft', *arguments, *flags, '--out', str(out)])
        assert message in capsys.readouterr().err
