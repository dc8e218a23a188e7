"""Experiments: their points, resuming, and the report over seeds."""

import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from helpers.generation import small_model
from helpers.models import changed
from helpers.paths import CONFIGS

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.tools.commands import evaluate_command
from infinity_jax.tools.commands.config_flags import read_config_file
from infinity_jax.tools.experiments import run as runner
from infinity_jax.tools.experiments.experiment import read_experiment, save_experiment
from infinity_jax.tools.experiments.figures import read_figures
from infinity_jax.tools.experiments.finished import check_training, save_evaluation
from infinity_jax.tools.experiments.report import _summaries, report_experiment
from infinity_jax.tools.experiments.run import run_experiment
from infinity_jax.training.flops import training_step
from infinity_jax.training.init_from import run_config
from infinity_jax.training.run_folder import write_description
from infinity_jax.weights.model_folder import save_model

SHIPPED = CONFIGS / 'experiments.py'
FILE = """
import runpy
get_config = lambda variant: runpy.run_path('@')['get_config']()
EXPERIMENTS = {'strength': {'title': 'Strength', 'axis': 'flips', 'points': {
    'none': {'x': 0, 'series': 'demo', 'fields': {}},
    'some': {'x': 0.1, 'series': 'demo', 'fields': {}},
}}, 'unknown': {'title': 'Unknown', 'axis': 'x', 'points': {
    'one': {'x': 0, 'series': 'demo', 'evaluate': ('--cfg', 3)},
}}, 'trains': {'title': 'Trains', 'axis': 'x', 'points': {
    'one': {'x': 0, 'series': 'demo', 'evaluate': ('demo',)},
}}, 'rates': {'title': 'Rates', 'axis': 'x', 'figures': ('change',), 'points': {
    'one': {'x': 0, 'series': 'demo', 'evaluate': ('repair', '--rates=0.1,0.2')},
}}, 'model': {'title': 'Model', 'axis': 'x', 'points': {
    'one': {'x': 0, 'series': 'demo', 'model': 'strength/none'},
}}, 'log': {'title': 'Log', 'axis': 'x', 'log_axis': True, 'points': {
    'one': {'x': 0, 'series': 'demo'},
}}, 'odd': {'title': 'Odd', 'axis': 'x', 'figures': ('psn',), 'points': {
    'one': {'x': 0, 'series': 'demo'},
}}, 'text': {'title': 'Text', 'axis': 'x', 'figures': 'psnr', 'points': {
    'one': {'x': 0, 'series': 'demo'},
}}, 'none': {'title': 'None', 'axis': 'x', 'points': {}
}, 'bare': {'axis': 'x', 'points': {'one': {'x': 0, 'series': 'demo'}}
}, 'misspelt': {'title': 'Misspelt', 'axis': 'x', 'log_axes': True, 'points': {
    'one': {'x': 0, 'series': 'demo'},
}}, 'verb': {'title': 'Verb', 'axis': 'x', 'points': {
    'one': {'x': 0, 'series': 'demo', 'evaluates': ('demo',)},
}}, 'word': {'title': 'Word', 'axis': 'x', 'points': {'one': {'x': 'zero', 'series': 'demo'}}
}, 'flag': {'title': 'Flag', 'axis': 'x', 'figures': ('psnr',), 'points': {
    'one': {'x': 0, 'series': 'demo', 'evaluate': ('demo', '--cgf', 3)},
}}, 'lengths': {'title': 'Lengths', 'axis': 'x', 'points': {
    'short': {'x': 0, 'series': 'demo', 'fields': {'steps': 5, 'batch_size': 2}},
    'long': {'x': 0, 'series': 'demo', 'fields': {'steps': 9, 'batch_size': 2}},
}}}
""".replace('@', str(CONFIGS / 't2i.py'))
EVALUATIONS = """
EXPERIMENTS = {'guidance': {
    'title': 'Guidance', 'axis': 'guidance', 'figures': ('emoji_trained', 'background'),
    'points': {'three': {'x': 3, 'series': 'demo', 'evaluate': ('demo', '--cfg', 3)}},
}}
"""
REPAIR = """
EXPERIMENTS = {'repair': {
    'title': 'Repair', 'axis': 'flipped',
    'figures': ('flipped_trained', 'flipped_background', 'change'),
    'points': {
        f'{name}_flipped': {
            'x': 10, 'series': name, 'model': f'strength/{name}',
            'evaluate': ('repair', '--rates', 0.1),
        }
        for name in ('none', 'nobody')
    },
}}
"""
TOKENIZED = """
import runpy
get_config = lambda variant: runpy.run_path('@')['get_config']()
point = {'x': 8, 'series': 'demo', 'tokenizer': 'd8', 'fields': {}}
EXPERIMENTS = {
    'first': {'title': 'First', 'axis': 'd', 'points': {'a': point, 'b': point}},
    'second': {'title': 'Second', 'axis': 'd', 'points': {'c': point}},
}
""".replace('@', str(CONFIGS / 't2i.py'))
OUT = pathlib.Path('runs')
EMOJI = {('none', 0): 0.5, ('none', 1): 0.7, ('some', 0): 0.6, ('some', 1): 0.9}


def write_judgement(folder, emoji, background=1.0):
    rows = {row: {'emoji': emoji, 'background': background}
            for row in ('generated', 'reconstructions')}  # fmt: skip
    judged = {kind: {'psnr': 20.0, **rows} for kind in ('trained', 'held_out')}
    (folder / 'evaluation.json').write_text(json.dumps(judged))


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
        write_judgement(folder, emoji)

    monkeypatch.setattr(runner, '_train', train)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file.py').write_text(FILE)
    return trained


def test_points_are_trained_once_with_every_seed_and_reported(trained, capsys):
    main(['experiment', 'run', 'file.py:strength', '--seeds', '0', '--out', 'runs'])
    assert 'not finished' not in capsys.readouterr().out
    assert trained == [
        [f'--config=file.py:strength/{point}',
         f'--config.run_dir=runs/strength/{point}/seed_0', '--config.seed=0']
        for point in ('none', 'some')
    ]  # fmt: skip
    trained.clear()
    folder = run_experiment('file.py:strength', seeds=(0, 1), out=runner.pathlib.Path('runs'))
    assert [flags[2] for flags in trained] == ['--config.seed=1'] * 2
    points = report_experiment(folder)['points']
    assert points['some']['emoji_trained'] == {
        'values': [0.6, 0.9], 'mean': pytest.approx(0.75), 'min': 0.6, 'max': 0.9,
    }  # fmt: skip
    assert points['none']['loss']['mean'] == 1.5 and points['none']['seeds'] == [0, 1]
    assert '60.0 (50.0 to 70.0)' in (folder / 'report.txt').read_text()
    assert (folder / 'report.png').read_bytes().startswith(b'\x89PNG')


def test_points_with_flags_evaluate_a_model_and_train_none(trained, monkeypatch, tmp_path, capsys):
    evaluated = []

    def evaluate(args):
        evaluated.append((args.cfg, args.seed, args.out))
        write_judgement(pathlib.Path(args.out), 0.5, 0.25)

    monkeypatch.setattr(evaluate_command, 'run_demo', evaluate)
    pathlib.Path('file.py').write_text(EVALUATIONS)
    command = ['experiment', 'run', 'file.py:guidance', '--seeds', '0,7', '--out', 'runs']
    with pytest.raises(SystemExit):
        main([*command, '--config.steps=5'])
    assert '--config.steps=5: the points of guidance evaluate' in capsys.readouterr().err
    main(command)
    assert evaluated == [((3,), seed, f'runs/guidance/three/seed_{seed}') for seed in (0, 7)]
    assert not trained
    (heading, row) = capsys.readouterr().out.splitlines()[-2:]
    assert heading.split() == [
        *('point', 'runs', 'emoji', 'right', '(%)', 'backgrounds', 'right', '(%)')
    ]
    assert row.split() == ['three', '2', '50.0', '25.0']
    main(command)
    assert len(evaluated) == 2
    pathlib.Path('file.py').write_text(EVALUATIONS.replace("'--cfg', 3", "'--cfg', 4"))
    with pytest.raises(SystemExit):
        main(command)
    error = capsys.readouterr().err
    assert 'three/seed_0 is finished with other settings (flags demo --cfg 3 --seed=0 -> ' in error
    pathlib.Path('file.py').write_text(EVALUATIONS)
    other = tmp_path / 'model'
    other.mkdir()
    (other / 'config.json').write_text('{}')
    monkeypatch.setattr(runner, 'DEMO_FOLDER', other)
    with pytest.raises(SystemExit):
        main(command)
    assert 'model holds another model); remove that folder' in capsys.readouterr().err
    assert len(evaluated) == 2


def test_models_of_another_experiment_are_evaluated(monkeypatch, tmp_path, capsys):
    evaluated = []

    def evaluate(args):
        evaluated.append((args.rates, args.checkpoint, args.seed, args.out))
        folder = pathlib.Path(args.out)
        row = {'emoji': {'value': 0.25}, 'background': {'value': 0.5}, 'distance': 7.0}
        row = {'generated': row}
        judged = {'rates': {'0.1': {'trained': row, 'held_out': row}}}
        (folder / 'repair.json').write_text(json.dumps(judged))

    monkeypatch.setattr(evaluate_command, 'run_repair', evaluate)
    monkeypatch.chdir(tmp_path)
    pathlib.Path('file.py').write_text(REPAIR)
    command = ['experiment', 'run', 'file.py:repair', '--seeds', '0,3', '--out', 'runs']
    pathlib.Path('runs/strength/none/seed_0/model').mkdir(parents=True)
    with pytest.raises(SystemExit):
        main(command)
    assert (
        'runs/strength/nobody/seed_0/model is missing; train it with infinity-jax experiment run '
        "file.py:strength --only 'no*' --seeds 0,3 --out runs\n"
    ) in capsys.readouterr().err
    assert not evaluated
    for seed in (0, 3):
        for name in ('none', 'nobody'):
            pathlib.Path(f'runs/strength/{name}/seed_{seed}/model').mkdir(
                parents=True, exist_ok=True
            )
    main([*command, '--only', 'none*'])
    assert evaluated == [
        ((0.1,), f'runs/strength/none/seed_{seed}/model', seed,
         f'runs/repair/none_flipped/seed_{seed}')
        for seed in (0, 3)
    ]  # fmt: skip
    assert ['none_flipped', '2', '25.0', '50.0', '7.0'] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]
    main(command)
    assert len(evaluated) == 4
    shutil.rmtree('runs/strength')  # finished evaluations do without
    main(command)
    assert len(evaluated) == 4


def test_a_tokenizer_is_trained_before_and_once_for_all_that_use_it(monkeypatch, tmp_path):
    calls = []

    def train(flags, title):
        calls.append((title, flags))
        run_dir = tmp_path / flags[1].split('=')[1]
        (run_dir / 'model').mkdir(parents=True)
        (run_dir / 'evaluation.json').write_text('{}')

    monkeypatch.setattr(runner, '_train', train)
    monkeypatch.chdir(tmp_path)
    pathlib.Path('file.py').write_text(TOKENIZED)
    for name in ('first', 'second'):
        overrides = ('--config.steps=5',)
        run_experiment(f'file.py:{name}', seeds=(0,), out=OUT, overrides=overrides)
    assert [title for title, _ in calls] == [
        'tokenizer d8', 'run 1 of 2: a, seed 0', 'run 2 of 2: b, seed 0', 'run 1 of 1: c, seed 0',
    ]  # fmt: skip
    assert calls[0][1] == ['--config=file.py:tokenizers/d8', '--config.run_dir=runs/tokenizers/d8']
    assert calls[1][1] == [
        '--config=file.py:first/a', '--config.run_dir=runs/first/a/seed_0', '--config.seed=0',
        '--config.tokenizer=runs/tokenizers/d8/model', '--config.steps=5',
    ]  # fmt: skip


@pytest.mark.parametrize('trains_text', [False, True])
def test_sizes_are_those_of_the_exported_model(trains_text, tmp_path):
    run = {'steps': 10, 'batch_size': 2, 'text': {'train': trains_text}}
    model = small_model()
    save_model(tmp_path / 'model', changed(model, extra={'run': run}))
    names = ('parameters', 'head_parameters', 'head_memory', 'compute')
    figures = read_figures(tmp_path, names)
    trained = [model.transformer_params, *([model.text_params] if trains_text else [])]
    leaves = jax.tree.leaves(trained)
    assert figures['parameters'] == sum(leaf.size for leaf in leaves)
    head = 32 * 8 + 8  # width, two logits for each of 4 bits
    assert figures['head_parameters'] == head
    tokens = model.configs.schedule.num_tokens
    assert figures['head_memory'] == 4 * (5 * head + 2 * 2 * tokens * 8)
    text = model.configs.text if trains_text else None
    step = training_step(model.configs.transformer, model.configs.schedule, 2, 8, trained_text=text)
    assert figures['compute'] == 10 * step.total


def test_the_mean_of_equal_figures_is_that_figure():
    for value in np.arange(1, 100) / 100:
        summary = _summaries([{'emoji': value}] * 3)['emoji']
        assert summary['mean'] == summary['min'] == summary['max'] == value


def test_a_report_warns_of_runs_that_were_not_trained_alike(trained, tmp_path, capsys):
    folder = run_experiment('file.py:strength', seeds=(0, 1), out=tmp_path)
    for seed, steps in ((0, 600), (1, 1200)):
        for point in ('none', 'some'):
            run_dir = folder / point / f'seed_{seed}'
            run = {'seed': seed, 'run_dir': str(run_dir), 'optimizer': {'beta1': 0.9}}
            run['steps'] = steps if point == 'some' else 600
            run['optimizer']['beta1'] = 0.8 if point == 'some' else 0.9
            (run_dir / 'config.json').write_text(json.dumps(run))
    report_experiment(folder)
    warnings = [line for line in capsys.readouterr().out.splitlines() if 'warning' in line]
    assert len(warnings) == 2 and 'the seeds of some differ in steps; remove' in warnings[0]
    assert 'points differ in optimizer.beta1, which is none of their fields; remove' in warnings[1]
    assert '\n'.join(warnings) in (folder / 'report.txt').read_text()


def test_a_report_names_the_points_that_are_missing(trained, capsys):
    main(['experiment', 'run', 'file.py:strength', '--only', 'some', '--seeds', '1', '--out', 'r'])
    assert 'not finished: none' in capsys.readouterr().out
    command = ['experiment', 'run', 'file.py:strength', '--out', 'r', '--seeds']
    main([*command, '0'])
    assert 'not finished: none (seed 1)\n' in capsys.readouterr().out
    main([*command, '0,1'])
    assert 'not finished' not in capsys.readouterr().out


def test_a_finished_training_of_other_settings_is_not_taken_for_a_run(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runner, '_train', lambda flags, title: pytest.fail(title))
    monkeypatch.chdir(tmp_path)
    spec = f'{SHIPPED}:self_correction'
    point = ['--only', '4_scales_0', '--seeds', '0', '--out', 'runs']
    folder = tmp_path / 'runs' / 'self_correction' / '4_scales_0' / 'seed_0'
    folder.mkdir(parents=True)
    write_judgement(folder, 0.5)
    lines = [{'step': 9, 'split': 'heldout', 'accuracy': 0.8, 'loss': 1.0}]
    (folder / 'metrics.jsonl').write_text(json.dumps(lines[0]) + '\n')
    config = run_config(read_config_file(f'{spec}/4_scales_0', ['--config.steps=5']))
    write_description(config, folder)
    with pytest.raises(SystemExit):
        main(['experiment', 'run', spec, *point])
    error = capsys.readouterr().err
    assert 'seed_0 is finished with other settings (changed since' in error
    assert 'steps 5 -> 2400' in error
    main(['experiment', 'run', spec, *point, '--config.steps=5'])
    assert 'run 1 of 1: 4_scales_0, seed 0: finished before' in capsys.readouterr().out


def test_finished_runs_are_checked_before_any_is_trained(trained, tmp_path, capsys):
    folder = tmp_path / 'runs' / 'lengths' / 'long' / 'seed_0'
    folder.mkdir(parents=True)
    write_judgement(folder, 0.5)
    config = run_config(read_config_file('file.py:lengths/long', ['--config.seed=1']))
    write_description(config, folder)
    with pytest.raises(SystemExit):
        main(['experiment', 'run', 'file.py:lengths', '--seeds', '0', '--out', 'runs'])
    assert 'seed_0 is finished with other settings (changed since' in capsys.readouterr().err
    assert not trained


def test_a_finished_training_on_another_tokenizer_is_refused(trained, tmp_path, capsys):
    folder, other = tmp_path / 'runs' / 'strength' / 'none' / 'seed_0', tmp_path / 'other'
    folder.mkdir(parents=True)
    write_judgement(folder, 0.5)
    write_description(run_config(read_config_file('file.py:strength/none')), folder)
    model = small_model()
    save_model(folder / 'model', model)
    doubled = jax.tree.map(lambda x: 2 * x, model.tokenizer_params)
    save_model(other, changed(model, tokenizer_params=doubled))
    command = ['experiment', 'run', 'file.py:strength', '--only', 'none', '--seeds', '0']
    with pytest.raises(SystemExit):
        main([*command, '--out', 'runs', f'--config.tokenizer={other}'])
    assert 'other holds another tokenizer); remove that folder' in capsys.readouterr().err
    check_training(folder, 'file.py:strength/none', [f'--config.tokenizer={folder / "model"}'])
    assert not trained


def test_a_report_warns_of_other_flags_of_an_evaluation(trained, tmp_path, capsys):
    pathlib.Path('file.py').write_text(EVALUATIONS)
    experiment = read_experiment('file.py:guidance')
    folder = tmp_path / 'runs' / 'guidance'
    for seed, guidance in ((0, 3), (1, 6)):
        run_dir = folder / 'three' / f'seed_{seed}'
        save_evaluation(run_dir, ['demo', '--cfg', str(guidance), f'--seed={seed}'], tmp_path)
        write_judgement(run_dir, 0.5)
    save_experiment(folder, experiment)
    report_experiment(folder)
    assert 'the seeds of three differ in the flags of their evaluation' in capsys.readouterr().out


def test_a_time_that_an_earlier_version_did_not_measure_is_named(tmp_path):
    write_judgement(tmp_path, 0.5)
    assert read_figures(tmp_path, ['emoji_trained']) == {'emoji_trained': 0.5}
    with pytest.raises(UserError, match='has no seconds_per_image, which an earlier .*; remove'):
        read_figures(tmp_path, ['emoji_trained', 'seconds_per_image'])
    (tmp_path / 'model').mkdir()
    with pytest.raises(UserError, match='infinity-jax evaluate demo --checkpoint .*model --out'):
        read_figures(tmp_path, ['seconds_per_image'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['run', 'file.py:other'], "file.py has no experiment 'other'; wanted FILE:NAME"),
        (['run', 'file.py:strength', '--only', 'x*'], 'no such point; known: none, some'),
        (
            ['run', 'file.py:odd'],
            'file.py: figures of experiment odd are psn; wanted some of emoji',
        ),
        (
            ['run', 'file.py:unknown'],
            'file.py: evaluate of point one is --cfg 3; wanted demo or repair, then flags',
        ),
        (
            ['run', 'file.py:trains'],
            'figures of point one are accuracy, loss, which demo does not give; wanted emoji',
        ),
        (['run', 'file.py:rates'], 'evaluate of point one has --rates 0.1,0.2; wanted one rate'),
        (['run', 'file.py:model'], 'model of point one is strength/none, but the point trains'),
        (['run', 'file.py:log'], 'x of point one is 0; wanted more than 0 on a logarithmic axis'),
        (['run', 'file.py:text'], "figures of experiment text is 'psnr'; wanted several words"),
        (['run', 'file.py:none'], 'file.py: experiment none has no points; wanted name -> point'),
        (['run', 'file.py:bare'], 'file.py: experiment bare lacks title'),
        (['run', 'file.py:misspelt'], "unknown key 'log_axes'; did you mean log_axis?"),
        (['run', 'file.py:verb'], "point one of verb has the unknown key 'evaluates'; did you"),
        (['run', 'file.py:word'], "file.py: point one of word: x is 'zero'; wanted a number"),
        (
            ['run', 'file.py:flag'],
            'file.py: evaluate of point one: unrecognized arguments: --cgf 3',
        ),
        (['run', 'file.py:strength', '--seeds', 'a'], '--seeds a: wanted whole numbers'),
        (['run', 'file.py:strength', '--seeds=-1'], '--seeds -1: wanted whole numbers from 0 on'),
        (['run', 'nofile.py:strength'], 'nofile.py: no such file; wanted FILE:NAME, such as'),
        (['run', 'file.py:strength', '--config.stepss=3'], 'stepss'),
        (
            ['run', 'file.py:lengths', '--config.steps=3'],
            '--config.steps=3: the points of lengths differ in steps; change it in the config file',
        ),
        (['report', 'file.py'], 'file.py has no experiment.json; wanted the folder'),
        (
            ['run', 'file.py:strength', '--config.seed=3'],
            '--config.seed=3: an experiment sets seed of each run; use --seeds instead',
        ),
        (
            ['run', 'file.py:strength', '--config.run_dir=x'],
            'an experiment sets run_dir of each run; use --out instead',
        ),
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


def test_a_request_to_stop_reaches_the_trainer(tmp_path, monkeypatch):
    lines = (
        'import os, signal, sys, time',
        'signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))',
        'os.kill(os.getppid(), signal.SIGTERM)',
        'time.sleep(60)',
    )
    (tmp_path / 'stopped_trainer.py').write_text('\n'.join(lines))
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setattr(runner, 'TRAIN', 'stopped_trainer')
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match='run 1 of 2 ended with exit code 7'):
        runner._train([], 'run 1 of 2')
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_fails_ends_the_experiment(monkeypatch):
    monkeypatch.setattr(runner.sys, 'executable', '/bin/false')
    with pytest.raises(UserError, match='run 1 of 2 ended with exit code 1'):
        runner._train([], 'run 1 of 2')
