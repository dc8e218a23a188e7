"""Experiments: their points, resuming, and the report over seeds."""

import json
import runpy

import pytest
from helpers.paths import CONFIGS

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.tools.commands.config_flags import read_config_file
from infinity_jax.tools.experiments import run as runner
from infinity_jax.tools.experiments.experiment import read_experiment
from infinity_jax.tools.experiments.report import report_experiment
from infinity_jax.tools.experiments.run import run_experiment
from infinity_jax.training.init_from import run_config

SHIPPED = CONFIGS / 'experiments.py'
FILE = """
EXPERIMENTS = {'strength': {'title': 'Strength', 'axis': 'flips', 'points': {
    'none': {'x': 0, 'series': 'demo', 'fields': {}},
    'some': {'x': 0.1, 'series': 'demo', 'fields': {}},
}}}
"""
EMOJI = {('none', 0): 0.5, ('none', 1): 0.7, ('some', 0): 0.6, ('some', 1): 0.9}


@pytest.mark.parametrize('name', runpy.run_path(str(SHIPPED))['EXPERIMENTS'])
def test_every_point_is_a_run_that_changes_its_fields(name):
    entry = runpy.run_path(str(SHIPPED))['EXPERIMENTS'][name]
    assert list(read_experiment(f'{SHIPPED}:{name}').points) == list(entry['points'])
    for point, each in entry['points'].items():
        config = run_config(read_config_file(f'{SHIPPED}:{name}/{point}'))
        for field, value in each['fields'].items():
            found = config
            for part in field.split('.'):
                found = getattr(found, part)
            assert found == value


@pytest.mark.parametrize(
    ('variant', 'message'),
    [
        ('none', "unknown experiment 'none'; known: self_correction, budget"),
        ('budget/none', "unknown point 'none' of budget; known: 900_steps_0"),
    ],
)
def test_unknown_points(variant, message):
    with pytest.raises(UserError, match=message):
        read_config_file(f'{SHIPPED}:{variant}')


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The flags of all trainings, each of which writes what the trainer does."""
    trained = []

    def train(flags, title):
        trained.append(flags)
        values = dict(flag.removeprefix('--config').lstrip('.').split('=') for flag in flags)
        folder, seed = tmp_path / values['run_dir'], int(values['seed'])
        emoji = EMOJI[values[''].split('/')[-1], seed]
        folder.mkdir(parents=True)
        lines = [{'step': 5, 'split': 'heldout', 'accuracy': 0.1, 'loss': 9.0}]
        lines += [{'step': 9, 'split': 'heldout', 'accuracy': 0.8, 'loss': 1.0 + seed}]
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(each) + '\n' for each in lines))
        judged = {kind: {'generated': {'emoji': emoji}} for kind in ('trained', 'held_out')}
        (folder / 'evaluation.json').write_text(json.dumps(judged))

    monkeypatch.setattr(runner, '_train', train)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file.py').write_text(FILE)
    return trained


def test_points_are_trained_once_with_every_seed_and_reported(trained, capsys):
    main(['experiment', 'run', 'file.py:strength', '--seeds', '0', '--out', 'runs'])
    assert 'not finished' not in capsys.readouterr().out
    assert trained == [
        [f'--config=file.py:strength/{point}', '--config.seed=0',
         f'--config.run_dir=runs/strength/{point}/seed_0']
        for point in ('none', 'some')
    ]  # fmt: skip
    trained.clear()
    folder = run_experiment('file.py:strength', seeds=(0, 1), out=runner.pathlib.Path('runs'))
    assert [flags[1] for flags in trained] == ['--config.seed=1'] * 2
    points = report_experiment(folder)['points']
    assert points['some']['emoji_trained'] == {
        'values': [0.6, 0.9], 'mean': pytest.approx(0.75), 'min': 0.6, 'max': 0.9,
    }  # fmt: skip
    assert points['none']['loss']['mean'] == 1.5
    assert '60.0 (50.0 to 70.0)' in (folder / 'report.txt').read_text()
    assert (folder / 'report.png').read_bytes().startswith(b'\x89PNG')


def test_a_report_names_the_points_that_are_missing(trained, capsys):
    main(['experiment', 'run', 'file.py:strength', '--only', 'some', '--seeds', '1', '--out', 'r'])
    assert 'not finished: none' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['run', 'file.py:other'], "file.py has no experiment 'other'; wanted FILE:NAME"),
        (['run', 'file.py:strength', '--only', 'x*'], 'no such point; known: none, some'),
        (['run', 'file.py:strength', '--seeds', 'a'], '--seeds a: wanted whole numbers'),
        (['report', '.'], 'has no experiment.json; wanted the folder of an experiment'),
    ],
)
def test_mistakes_are_one_line(trained, arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(['experiment', *arguments])
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not trained


def test_damaged_files_are_named(trained, tmp_path):
    folder = run_experiment('file.py:strength', seeds=(0,), out=tmp_path)
    (folder / 'some' / 'seed_0' / 'evaluation.json').write_text('{}')
    with pytest.raises(UserError, match='some/seed_0/evaluation.json is damaged'):
        report_experiment(folder)


def test_a_run_that_fails_ends_the_experiment(monkeypatch):
    monkeypatch.setattr(runner.sys, 'executable', '/bin/false')
    with pytest.raises(UserError, match='run 1 of 2 ended with exit code 1'):
        runner._train([], 'run 1 of 2')
