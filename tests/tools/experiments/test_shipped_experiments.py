"""The shipped experiments, configs/experiments.py: their points, models and flags."""

import pathlib
import runpy

import pytest
from helpers.paths import CONFIGS

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.config_flags import read_config_file
from infinity_jax.tools.commands.generation_flags import sampling_of
from infinity_jax.tools.experiments import run as runner
from infinity_jax.tools.experiments.experiment import read_experiment
from infinity_jax.tools.experiments.report import strays
from infinity_jax.tools.experiments.run import Run
from infinity_jax.training.init_from import run_config
from infinity_jax.training.run_folder import write_description

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


def flags_of(name):
    """The points of an experiment, each with the parsed flags of its evaluation with seed 1."""
    for label, point in read_experiment(f'{SHIPPED}:{name}').points.items():
        yield point, runner._flags(Run(str(SHIPPED), name, label, point, 1, pathlib.Path('runs')))


@pytest.mark.parametrize('name', ['sampling', 'sampling_by_scale'])
def test_the_flags_of_every_evaluation_are_known(name):
    settings = list(flags_of(name))
    for point, args in settings:
        guidance = sampling_of(args).per_scale('guidance', 4)
        assert sum(guidance) / 4 == pytest.approx(point.x, abs=0.01) and args.seed == 1
    assert len({str(args) for _, args in settings}) == len(settings)


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


def test_guidance_is_judged_for_every_share_of_dropped_captions():
    settings = list(flags_of('condition_drop_sampling'))
    for point, args in settings:
        assert point.model == f'condition_drop/{point.x:g}_dropped'
        assert args.checkpoint == f'runs/{point.model}/seed_1/model'
        assert point.series == f'guidance {args.cfg[0]:g}'
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
    ('name', 'of', 'points'),
    [
        ('repair', 'self_correction', 24),
        ('repair_long', 'budget', 12),
        ('repair_requantizing', 'requantizing', 3),
    ],
)
def test_repair_evaluates_models_that_another_experiment_trains(name, of, points):
    trained = runpy.run_path(str(SHIPPED))['EXPERIMENTS'][of]['points']
    settings = list(flags_of(name))
    for point, args in settings:
        model = point.model.removeprefix(f'{of}/')
        strength = trained[model]['fields']['self_correction.max_strength']
        assert point.series in (f'flips up to {strength:g} in training', model.replace('_', '-'))
        assert [100 * rate for rate in args.rates] == [point.x]
    assert len({str(args) for _, args in settings}) == len(settings) == points


@pytest.mark.parametrize('name', runpy.run_path(str(SHIPPED))['EXPERIMENTS'])
def test_the_points_of_an_experiment_differ_in_their_fields_alone(name, tmp_path):
    experiment = read_experiment(f'{SHIPPED}:{name}')
    folders = []
    for label, point in experiment.points.items():
        if point.evaluate is None:
            folders.append(tmp_path / label)
            folders[-1].mkdir()
            config = run_config(read_config_file(f'{SHIPPED}:{name}/{label}'))
            write_description(config, folders[-1])
    assert not strays(experiment, folders)
    if folders:
        changed = run_config(
            read_config_file(f'{SHIPPED}:{name}/{label}', ['--config.log_every=7'])
        )
        write_description(changed, folders[-1])
        assert strays(experiment, folders) == ['log_every']
