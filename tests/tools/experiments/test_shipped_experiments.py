"""The shipped experiments, configs/experiments.py: their points, models and flags."""

import runpy

import pytest
from helpers.paths import CONFIGS

from infinity_jax.errors import UserError
from infinity_jax.tools.commands import evaluate_command
from infinity_jax.tools.commands.config_flags import read_config_file
from infinity_jax.tools.commands.generation_flags import sampling_of
from infinity_jax.tools.experiments import run as runner
from infinity_jax.tools.experiments.experiment import read_experiment
from infinity_jax.training.init_from import run_config

SHIPPED = CONFIGS / 'experiments.py'


@pytest.mark.parametrize('name', runpy.run_path(str(SHIPPED))['EXPERIMENTS'])
def test_every_point_is_a_run_that_changes_its_fields(name):
    entry = runpy.run_path(str(SHIPPED))['EXPERIMENTS'][name]
    assert list(read_experiment(f'{SHIPPED}:{name}').points) == list(entry['points'])
    for point, each in entry['points'].items():
        if 'evaluate' in each:
            continue
        config = run_config(read_config_file(f'{SHIPPED}:{name}/{point}'))
        for field, value in each['fields'].items():
            found = config
            for part in field.split('.'):
                found = getattr(found, part)
            assert found == value
        if 'tokenizer' in each:
            tokenizer = run_config(read_config_file(f'{SHIPPED}:tokenizers/{each["tokenizer"]}'))
            assert config.transformer.bits == tokenizer.tokenizer.bits == each['x']
            assert config.tokenizer == f'{tokenizer.run_dir}/model'


@pytest.mark.parametrize('name', ['sampling', 'sampling_by_scale'])
def test_the_flags_of_every_evaluation_are_known(name, monkeypatch, tmp_path):
    settings = []
    monkeypatch.setattr(evaluate_command, 'run_demo', settings.append)
    for label, point in read_experiment(f'{SHIPPED}:{name}').points.items():
        runner._evaluate([*point.evaluate, '--seed=1'], [], tmp_path / label, False)
        sampling = sampling_of(settings[-1])
        guidance = sampling.per_scale('guidance', 4)
        assert sum(guidance) / 4 == pytest.approx(point.x, abs=0.01) and settings[-1].seed == 1
    assert len({str(args) for args in settings}) == len(settings)


def test_models_are_those_of_points_that_train():
    experiments = runpy.run_path(str(SHIPPED))['EXPERIMENTS']
    models = {
        point['model']
        for experiment in experiments.values()
        for point in experiment['points'].values()
        if 'model' in point
    }
    assert {name.partition('/')[0] for name in models} == {
        *('self_correction', 'budget', 'requantizing', 'condition_drop')
    }
    for name in models:
        experiment, _, point = name.partition('/')
        assert 'evaluate' not in experiments[experiment]['points'][point]


def test_guidance_is_judged_for_every_share_of_dropped_captions(monkeypatch, tmp_path):
    settings = []
    monkeypatch.setattr(evaluate_command, 'run_demo', settings.append)
    for point in read_experiment(f'{SHIPPED}:condition_drop_sampling').points.values():
        assert point.model == f'condition_drop/{point.x:g}_dropped'
        runner._evaluate(point.evaluate, [f'--checkpoint={tmp_path}'], tmp_path / 'out', False)
        assert point.series == f'guidance {settings[-1].cfg[0]:g}'
    assert len(settings) == 9


@pytest.mark.parametrize(
    ('variant', 'message'),
    [
        ('none', "unknown experiment 'none'; known: self_correction, repair"),
        ('budget/none', "unknown point 'none' of budget; known: 300_steps_0"),
        ('tokenizers/d9', "unknown tokenizer 'd9'; known: d8, d10"),
        ('sampling/3_0.5', 'point 3_0.5 of sampling trains nothing'),
    ],
)
def test_unknown_points(variant, message):
    with pytest.raises(UserError, match=message):
        read_config_file(f'{SHIPPED}:{variant}')


@pytest.mark.parametrize(
    ('name', 'of', 'points'), [('repair', 'self_correction', 24), ('repair_long', 'budget', 12)]
)
def test_repair_evaluates_models_that_another_experiment_trains(
    name, of, points, monkeypatch, tmp_path
):
    settings = []
    monkeypatch.setattr(evaluate_command, 'run_repair', settings.append)
    trained = runpy.run_path(str(SHIPPED))['EXPERIMENTS'][of]['points']
    for point in read_experiment(f'{SHIPPED}:{name}').points.values():
        name = point.model.removeprefix(f'{of}/')
        strength = trained[name]['fields']['self_correction.max_strength']
        assert point.series == f'flips up to {strength:g} in training'
        runner._evaluate([*point.evaluate], [f'--checkpoint={tmp_path}'], tmp_path / 'out', False)
        assert [100 * rate for rate in settings[-1].rates] == [point.x]
    assert len({str(args) for args in settings}) == len(settings) == points
