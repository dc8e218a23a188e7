"""Every config file builds, fits its dataclass, and refuses unknown fields."""

import dataclasses
import importlib.util
import math
import re
import subprocess
import sys

import pytest
from absl import flags
from helpers.paths import CONFIGS, DEMO, REPOSITORY
from ml_collections import ConfigDict

from infinity_jax.config import PRESETS, TextConfig, TokenizerConfig, TransformerConfig
from infinity_jax.data.buckets import target_size
from infinity_jax.data.config import SourceConfig
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.commands.config_flags import parse_flags, read_config_file
from infinity_jax.training.init_from import run_config
from infinity_jax.training.tokenizer.config import (
    AdversarialConfig,
    TokenizerLosses,
    TokenizerRunConfig,
    check,
)
from infinity_jax.training.transformer.config import T2IConfig


def load(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('arg', ['demo', 'shipped', 'scenes'])
def test_t2i(arg):
    config = from_mapping(T2IConfig, load('t2i').get_config(arg))
    assert config.task == 't2i'
    assert config.transformer.text_channels == config.text.encoder.width
    assert config.batch_size % 8 == 0


def test_sources_are_named_in_the_config():
    config = load('t2i').get_config()
    config.data.sources = ({'kind': 'tar', 'path': '/data', 'weight': 2},)
    config.data.ratios = ('all',)
    data = from_mapping(T2IConfig, config).data
    assert data.sources_of('train') == (SourceConfig('tar', '/data', weight=2.0),)
    assert len(data.bucket_names) == 15
    config.data.sources = ({'kind': 'tar', 'pth': '/data'},)
    with pytest.raises(UserError, match='data.sources.pth; did you mean data.sources.path?'):
        from_mapping(T2IConfig, config)


def test_the_tokenizer_and_the_transformer_of_the_demo_fit():
    tokenizer = from_mapping(TokenizerRunConfig, load('tokenizer').get_config())
    check(tokenizer)
    for arg in ('demo', 'shipped', 'scenes'):
        t2i = from_mapping(T2IConfig, load('t2i').get_config(arg))
        assert t2i.transformer.bits == tokenizer.tokenizer.bits
        assert t2i.transformer.max_scales >= len(ScaleSchedule.free(tokenizer.grids))
        assert t2i.data.image_size == tokenizer.data.image_size


DEMOS = load('tokenizer').DEMOS
TOKENIZER_VARIANTS = [v for v in load('tokenizer').VARIANTS if v not in DEMOS]


@pytest.mark.parametrize('arg', TOKENIZER_VARIANTS)
def test_released_tokenizers(arg):
    config = from_mapping(TokenizerRunConfig, load('tokenizer').get_config(arg))
    check(config)
    assert config.tokenizer.stride == (8 if arg.startswith('d14') else 16)
    assert f'd{config.tokenizer.bits}_' in arg and config.run_dir.endswith(arg)
    size, scales = (256, 7) if arg.endswith('stage1') else (1024, 13)
    for ratio in config.data.bucket_names:
        assert len(config.code_grids(target_size(ratio, size))) == scales
    assert len(config.data.bucket_names) == (1 if size == 256 else 15)
    assert config.adversarial.start_step < config.steps


@pytest.mark.parametrize('arg', DEMOS)
def test_small_tokenizers(arg):
    config = from_mapping(TokenizerRunConfig, load('tokenizer').get_config(arg))
    check(config)
    assert config.code_grids((64, 64))[-1] == (8, 8)
    sources = config.data.sources_of('train')
    assert (sources[0].kind == 'folder') == (arg == 'images')
    assert config.freeze_encoder == (arg == 'demo_decoder')


def test_every_field_of_the_tokenizers_losses_and_discriminator_can_be_set_by_a_flag():
    for arg in ('demo', 'd32_stage1'):
        config = load('tokenizer').get_config(arg)
        for group, fields in (('losses', TokenizerLosses), ('adversarial', AdversarialConfig)):
            assert set(config[group]) == {f.name for f in dataclasses.fields(fields)}
    run = from_mapping(TokenizerRunConfig, config)  # the released recipe has one optimizer for both
    mine, its = (dataclasses.asdict(o) for o in (run.optimizer, run.adversarial.optimizer))
    assert {**its, 'ema_decay': None} == {**mine, 'ema_decay': None}


def test_a_folder_of_images_has_no_captions_for_text_to_image():
    config = load('t2i').get_config()
    config.data.sources = ({'kind': 'folder', 'path': 'photos'},)
    with pytest.raises(UserError, match='folder photos has no captions'):
        from_mapping(T2IConfig, config)


def parsed(arguments, monkeypatch):
    argv = ['main', *arguments]
    monkeypatch.setattr('sys.argv', argv)  # ml_collections looks for overrides there
    saved = flags.FLAGS['config'].value
    try:
        parse_flags(argv)
        return flags.FLAGS['config'].value
    finally:
        flags.FLAGS.unparse_flags()
        flags.FLAGS['config'].value = saved
        for name in [name for name in flags.FLAGS if name.startswith('config.')]:
            delattr(flags.FLAGS, name)  # of this command line alone


def test_a_source_in_the_list_and_the_discriminators_optimizer_are_set_by_flags(monkeypatch):
    arguments = (
        f'--config={CONFIGS / "tokenizer.py"}:images',
        '--config.data.sources[0].path=photos',
        '--config.adversarial.optimizer.learning_rate=2e-4',
        '--config.adversarial.adaptive_limit=10',
        '--config.adversarial.lecam_decay=0.9',
    )
    run = from_mapping(TokenizerRunConfig, parsed(arguments, monkeypatch))
    assert run.data.sources == (SourceConfig('folder', 'photos'),)
    assert run.adversarial.optimizer.learning_rate == 2e-4
    assert (run.adversarial.adaptive_limit, run.adversarial.lecam_decay) == (10, 0.9)


def test_fields_that_no_shipped_config_lists_are_set_by_flags(monkeypatch):
    arguments = (
        f'--config={CONFIGS / "t2i.py"}:demo',
        '--config.data.max_broken_share=0.6',
        '--config.data.index_dir=indexes',
        '--config.data.repeat_records=true',
        '--config.data.ratio_weights=(1.0,)',
        '--config.lora.alpha=2',
        '--config.steps=3',
    )
    for config in (
        parsed(arguments, monkeypatch),
        read_config_file(arguments[0].removeprefix('--config='), arguments[1:]),
    ):
        run = run_config(config)
        assert run.data.max_broken_share == 0.6 and run.data.index_dir == 'indexes'
        assert run.data.repeat_records and run.data.ratio_weights == (1.0,)
        assert run.lora.alpha == 2 and run.steps == 3
    wrong = [arguments[0], '--config.data.max_broken_share=many']
    with pytest.raises(UserError, match="max_broken_share is 'many' of type str; wanted float"):
        run_config(parsed(wrong, monkeypatch))


@pytest.mark.parametrize('name', ['t2i', 'tokenizer', 'finetune'])
def test_unknown_variant(name):
    with pytest.raises(ValueError, match='unknown variant'):
        load(name).get_config('huge')


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.name)
def test_config_files_import_nothing_from_the_package(path):
    assert 'infinity_jax import' not in path.read_text()
    assert 'import infinity_jax' not in path.read_text()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config=nosuch.py'], 'no such file'),
        (['--config={t2i}:huge'], "unknown variant 'huge'"),
        (['--config={t2i}', '--config.optimizer.learning_rat=1'], 'did you mean .*learning_rate?'),
        (['--config={t2i}', '--config.stepz=1'], 'did you mean config.steps?'),
        (['--config={t2i}', '--config.steps=many'], 'invalid literal'),
        (['--config={t2i}', '--stepz=1'], "Unknown command line flag 'stepz'"),
        (['--config={t2i}', 'stray'], "unexpected argument 'stray'"),
        ([], 'no config file'),
    ],
)
def test_bad_flags_are_one_line(arguments, message, monkeypatch):
    arguments = [a.replace('{t2i}', str(CONFIGS / 't2i.py')) for a in arguments]
    with pytest.raises(UserError, match=message) as caught:
        parsed(arguments, monkeypatch)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'x = 1\ndef get_config(:\n', ':2: SyntaxError: '),
        (b'x = 1\n\nimport no_such_module\n', ':3: ModuleNotFoundError: No module named'),
        (b'[a]\nb = 1\n', ':1: NameError: '),
        (b"def get_config(arg=''):\n    return 1 / 0\n", ':2: ZeroDivisionError: '),
        (b"def get_config(arg=''):\n    return None.x\n", ':2: AttributeError: '),
        (b"def get_config(arg=''):\n    return {}['steps']\n", ":2: KeyError: 'steps'"),
        (b'raise SystemExit(3)\n', ':1: SystemExit: 3'),
        (b'x = chr(0)\n\0\n', 'null bytes'),
        (b'x = 1\n', 'has no function get_config'),
        (b'get_config = 5\n', 'has no function get_config'),
        (b"def get_config(arg=''):\n    pass\n", 'returns a NoneType; wanted a ConfigDict'),
        (b"def get_config(arg=''):\n    return {'task': 't2i'}\n", 'returns a dict; wanted'),
    ],
)
@pytest.mark.parametrize('override', [(), ('--config.steps=1',)])
def test_a_config_file_that_fails_is_one_line(tmp_path, monkeypatch, content, message, override):
    path = tmp_path / 'c.py'
    path.write_bytes(content)
    wanted = re.escape(f'{path}') + '.*' + re.escape(message)
    with pytest.raises(UserError, match=wanted) as caught:
        parsed([f'--config={path}', *override], monkeypatch)
    assert '\n' not in str(caught.value)
    with pytest.raises(UserError, match=wanted):
        read_config_file(str(path), override)


BAD_FIELDS = [
    ('seed', -1), ('seed', 2**32), ('seed', 10**23), ('seed', True), ('steps', 10**21),
    ('steps', None), ('batch_size', 10**9), ('condition_drop', 2.0), ('condition_drop', -1.0),
    ('condition_drop', math.nan), ('accumulate_steps', 0), ('self_correction.max_strength', 5.0),
    ('self_correction.max_strength', -1.0), ('self_correction.max_strength', math.nan),
    ('self_correction.max_strength', math.inf), ('self_correction.max_strength', 0.005),
    ('transformer.mlp_ratio', math.nan), ('transformer.mlp_ratio', math.inf),
    ('transformer.mlp_ratio', -1.0), ('transformer.mlp_ratio', 0.0),
    ('transformer.mlp_ratio', 1e12), ('transformer.mlp_ratio', 10**400),
    ('transformer.text_length', 10**9), ('transformer.depth', 10**7),
    ('transformer.depth', True), ('transformer.width', 2.5), ('transformer.num_heads', 0),
    ('transformer', [1]), ('transformer', 'big'), ('optimizer', None), ('data', 'emoji'),
    ('data.num_workers', -1), ('data.image_size', 0), ('data.image_size', 10**6),
    ('data.smallest_crop', 0.0), ('optimizer.learning_rate', 1e30),
    ('optimizer.learning_rate', math.nan), ('optimizer.weight_decay', 1e30),
    ('optimizer.ema_decay', 1.5), ('optimizer.warmup_steps', -1),
    ('optimizer.clip_norm', math.inf), ('text.encoder.num_layers', 0),
    ('text.encoder.num_layers', -1), ('text.encoder.num_heads', 0),
    ('text.encoder.head_dim', -4), ('text.encoder.ffn_width', 0), ('text.encoder.buckets', 0),
    ('text.encoder.buckets', 1), ('text.encoder.buckets', 2), ('text.encoder.buckets', 31),
    ('text.encoder.buckets', -2), ('text.encoder.max_distance', 0),
    ('text.encoder.max_distance', 1), ('text.encoder.max_distance', -1),
    ('lora.rank', -1), ('lora.alpha', math.nan), ('mesh.data', 10**9), ('mesh.fsdp', None),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'value'), BAD_FIELDS, ids=str)
def test_a_value_outside_of_its_range_names_the_field(name, value):
    fields = load('t2i').get_config().to_dict()
    *groups, last = name.split('.')
    node = fields
    for group in groups:
        node = node.setdefault(group, {})
    node[last] = value
    with pytest.raises(UserError, match=f'{name.replace(".", "[.]")}.* wanted') as caught:
        run_config(ConfigDict(fields))
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize('value', [5, True, ['x'], {'a': 1}], ids=str)
@pytest.mark.parametrize('name', ['task', 'init_from', 'tokenizer', 'text.folder'])
def test_the_type_of_a_name_that_is_read_first(name, value):
    fields = load('finetune').get_config().to_dict()
    fields['init_from'] = str(DEMO)
    group, _, last = name.rpartition('.')
    (fields[group] if group else fields)[last] = value
    with pytest.raises(UserError, match=f'config field {name} is .* wanted'):
        run_config(ConfigDict(fields))


@pytest.mark.parametrize(
    ('file', 'arg', 'fsdp', 'wanted'),
    [
        ('t2i', 'demo', 1, True),
        ('t2i', 'demo', 2, False),  # the user chose a mesh
        ('t2i', '125m_256', 1, False),
        ('tokenizer', 'demo', 1, True),
        ('tokenizer', 'd32_stage1', 1, False),
    ],
)
def test_small_models_are_trained_with_a_device_per_core(file, arg, fsdp, wanted):
    fields = load(file).get_config(arg)
    fields.mesh = ConfigDict({'data': -1, 'fsdp': fsdp, 'tensor': 1, 'sequence': 1})
    assert run_config(fields).device_per_core == wanted


@pytest.mark.parametrize('value', [5, 'abc', ['x']], ids=str)
def test_a_text_encoder_of_finetuning_that_is_no_group(value):
    fields = {**load('finetune').get_config().to_dict(), 'init_from': str(DEMO), 'text': value}
    with pytest.raises(UserError, match='config field text is .*; wanted a group of fields'):
        run_config(ConfigDict(fields))


def test_a_transformer_that_fits_no_memory_is_refused():
    with pytest.raises(UserError, match='parameters; wanted 1e[+]12 at most'):
        TransformerConfig(depth=1000, width=65536, num_heads=512)


@pytest.mark.parametrize(
    'fields',
    [
        {'residual_blocks': 10**7}, {'decoder_blocks': 10**7}, {'channel_multipliers': (1,) * 9},
        {'channel_multipliers': (1, 10**9)}, {'norm_groups': True}, {'unshuffle': 10**6},
        {'bits': 10**9},
    ],
)  # fmt: skip
def test_a_tokenizer_that_fits_no_memory_is_refused(fields):
    (name,) = fields
    with pytest.raises(UserError, match=f'tokenizer.{name}.* wanted'):
        TokenizerConfig(**fields)


@pytest.mark.parametrize(
    'grids', [(), ((0, 1),), ((1, 1), (10**9, 10**9)), ((1, True),), ((1, 1),) * 300, ((1, 1, 1),)]
)
def test_a_schedule_that_fits_no_memory_is_refused(grids):
    with pytest.raises(UserError, match='scale schedule'):
        ScaleSchedule(grids, (4, 4))


def test_ranges_of_all_presets_are_wide_enough():
    for transformer in PRESETS.values():
        assert dataclasses.replace(transformer) == transformer
    assert TextConfig().buckets == 32


def test_fields_by_their_old_names_are_read_from_the_command_line(tmp_path):
    old = {
        'data.picture_size': 63,  # refused, which ends the run at once
        'self_correction.per_picture': True,
        'transformer.levels': 4,
    }
    flags = [f'--config.{name}={value}' for name, value in old.items()]
    command = [sys.executable, '-m', 'infinity_jax.main', f'--config={CONFIGS / "t2i.py"}']
    done = subprocess.run(
        [*command, f'--config.run_dir={tmp_path}', *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    lines = done.stderr.splitlines()
    assert lines[:3] == [
        f'config field {old} is now {new}; the old name works until version 0.3'
        for old, new in (
            ('data.picture_size', 'data.image_size'),
            ('self_correction.per_picture', 'self_correction.per_image'),
            ('transformer.levels', 'transformer.max_scales'),
        )
    ]
    assert done.returncode == 2 and 'data.image_size is 63' in lines[-1]


def test_the_old_variant_of_folders_of_images_says_its_new_name(capsys):
    config = load('tokenizer').get_config('pictures')
    assert config.run_dir == 'runs/tokenizer_pictures'
    assert 'variant pictures is now images' in capsys.readouterr().err


@pytest.mark.parametrize(
    'flag',
    [
        'data.sources[0]=1', 'data.sources[7].path=x', 'run_dir=', 'data.sources=(1,)',
        'text.folder=' + 'x' * 5000, 'init_from=a\0b', 'optimizer.decay=linear',
    ],
    ids=lambda flag: flag[:30],
)  # fmt: skip
def test_flags_that_no_run_can_have_are_one_line(flag):
    with pytest.raises(UserError) as caught:
        run_config(read_config_file(str(CONFIGS / 't2i.py'), [f'--config.{flag}']))
    assert len(str(caught.value)) < 400 and flag.split('=')[0].split('[')[0] in str(caught.value)


@pytest.mark.parametrize(
    ('spec', 'problem'),
    [
        ('x' * 5000, '--config is .*wanted a path'), ('\0', '--config is .*wanted a path'),
        (':demo', '--config is .*wanted a path'), (r'C:\configs\t2i.py:demo', 'by a relative path'),
        ('/dev/null', 'no such file'), ('x' * 300, 'no such file'),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_places_without_a_config_file(spec, problem):
    with pytest.raises(UserError, match=problem):
        read_config_file(spec)


def test_names_of_fields_are_text():
    fields = load('t2i').get_config().to_dict()
    for odd in (ConfigDict({**fields, 5: 6}), {**fields, 5: 6}):
        with pytest.raises(UserError, match='config has a name that is .*; wanted text as names'):
            from_mapping(T2IConfig, odd)


def test_a_long_value_is_cut_in_messages():
    for value in ('x' * 10**5, {'a': {'b': [1] * 10**5}}, [['\n'] * 10**5]):
        fields = {**load('t2i').get_config().to_dict(), 'steps': value}
        with pytest.raises(
            UserError, match='config field steps is .*… of type .*; wanted int'
        ) as e:
            from_mapping(T2IConfig, fields)
        assert len(str(e.value)) < 200
