"""Every config file builds, fits its dataclass, and refuses unknown fields."""

import dataclasses
import importlib.util

import pytest
from absl import flags
from helpers.paths import CONFIGS

from infinity_jax.config import from_mapping
from infinity_jax.data.buckets import target_size
from infinity_jax.data.config import SourceConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.commands.config_flags import parse_flags
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


@pytest.mark.parametrize('arg', ['demo', 'shipped'])
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
    for arg in ('demo', 'shipped'):
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
