"""Every command that has the flags of model and image size hands all of them on."""

import pytest
from helpers.paths import REPOSITORY

import infinity_jax.serving.engine
import infinity_jax.tools.evaluation.benchmarks.plan  # noqa: F401 - before its imports are replaced
from infinity_jax import cli
from infinity_jax.inference import loading
from infinity_jax.inference import pipeline as pipeline_module


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    'command',
    [
        ['generate', 'a cat'],
        ['generate', 'a cat', '--grid', 'guidance=1,2'],
        ['edit', str(REPOSITORY / 'docs/editing.png'), 'a cat'],
        ['serve', '--port', '0'],
        ['compile'],
        ['evaluate', 'captions', '--prompts', 'prompts.txt', '--out', 'out'],
    ],
    ids=lambda command: ' '.join(command[:3:2]),
)
def test_precision_and_size_reach_the_model(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'prompts.txt').write_text('{"prompt": "a cat"}\n', encoding='utf-8')
    asked = {}

    def record(*args, **options):
        names = ('dtype', 'text_dtype')
        asked.update(dict(zip(names, args[1:], strict=False)) | options)
        raise Stop

    monkeypatch.setattr(pipeline_module.InfinityPipeline, 'from_pretrained', record)
    monkeypatch.setattr(loading, 'read_for_generation', record)
    for module in ('infinity_jax.serving.engine', 'infinity_jax.tools.evaluation.benchmarks.plan'):
        monkeypatch.setattr(f'{module}.read_for_generation', record)
    size = [] if command[0] == 'edit' else ['--aspect-ratio', '16:9']
    text = ['--text-encoder', 'host']
    with pytest.raises(Stop):
        cli.main([*command, '--dtype', 'bfloat16', '--text-dtype', 'float16', *size, *text])
    assert (asked['dtype'], asked['text_dtype']) == ('bfloat16', 'float16')
    assert asked['text_encoder'] == 'host'
    assert size == [] or asked['height_over_width'] == 9 / 16


@pytest.mark.parametrize(
    'command',
    [
        ['generate', 'a cat'],
        ['generate', 'a cat', '--grid', 'guidance=1', 'seed=1,2'],
        ['edit', str(REPOSITORY / 'docs/editing.png'), 'a cat'],
        ['compile'],
        ['evaluate', 'captions', '--prompts', 'prompts.txt', '--out', 'out'],
    ],
    ids=lambda command: ' '.join(command[:3:2]),
)
def test_guidance_and_the_length_of_texts_reach_the_plan_of_memory(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'prompts.txt').write_text('{"prompt": "a cat"}\n', encoding='utf-8')
    asked = {}

    def record(*args, **calls):
        asked.update(calls)
        raise Stop

    for module in (
        'inference.memory_plan',
        'inference.loading',
        'tools.evaluation.benchmarks.plan',
    ):
        monkeypatch.setattr(f'infinity_jax.{module}.plan_memory', record)
    text = [] if command[0] == 'edit' else ['--text-length', '3']
    for guidance in ('1', '3'):
        own = [] if '--grid' in command else ['--cfg', guidance]
        with pytest.raises(Stop):
            cli.main([*command, *own, *text])
        assert asked['guided'] == (own == ['--cfg', '3'])
        assert asked['text_length'] == (int(text[-1]) if text else None)
