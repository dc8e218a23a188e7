"""Trains and judges the points of an experiment, one after the other."""

import argparse
import fnmatch
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import DEMO_FOLDER, local_folder
from infinity_jax.tools.commands.evaluate_command import add_kinds
from infinity_jax.tools.experiments.experiment import (
    TOKENIZERS,
    Experiment,
    Point,
    read_experiment,
    save_experiment,
)
from infinity_jax.tools.experiments.finished import (
    check_evaluation,
    check_training,
    save_evaluation,
)

TRAIN = 'infinity_jax.main'


def run_experiment(
    spec: str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    only: str = '*',
    out: pathlib.Path = pathlib.Path('runs/experiments'),
    overrides: Sequence[str] = (),
) -> pathlib.Path:
    """Trains or evaluates every point with every seed; finished runs are left as they are.

    All points get the first seed before any gets the second, so that a report is possible early.
    The tokenizers of the points are trained before, once for all experiments of a folder `out`.

    Args:
      spec: FILE:NAME of the experiment.
      seeds: of the runs.
      only: pattern of the points' names, such as '4_scales_*'.
      out: folder; a run is in out/NAME/POINT/seed_SEED, a tokenizer in out/tokenizers/NAME.
      overrides: --config.FIELD=VALUE for all points, but not for their tokenizers.

    Returns:
      the folder of the experiment.

    Raises:
      UserError: there is no such experiment or point, a model that is to be evaluated is missing,
        a run failed, a finished run has other settings, or an override does not fit the points.
    """
    file, experiment = spec.partition(':')[0], read_experiment(spec)
    points = fnmatch.filter(experiment.points, only)
    if not points:
        raise UserError(f'--only {only}: no such point; known: {", ".join(experiment.points)}')
    _check_overrides(overrides, [experiment.points[point] for point in points], experiment.name)
    folder = out / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    save_experiment(folder, experiment)
    runs = [(seed, point) for seed in seeds for point in points]
    is_finished = lambda seed, point: (
        folder / point / f'seed_{seed}' / experiment.points[point].result
    ).exists()
    _check_models(file, experiment, [run for run in runs if not is_finished(*run)], out)
    _train_tokenizers(file, experiment, points, out)
    for number, (seed, point) in enumerate(runs, 1):
        run_dir = folder / point / f'seed_{seed}'
        title = f'run {number} of {len(runs)}: {point}, seed {seed}'
        finished = is_finished(seed, point)
        print(f'{title}: finished before' if finished else title, flush=True)
        flags, model = experiment.points[point].evaluate, experiment.points[point].model
        if flags is not None:
            checkpoint = [f'--checkpoint={_model_of_run(out, model, seed)}'] if model else []
            _evaluate([*flags, f'--seed={seed}'], checkpoint, run_dir, finished)
            continue
        config, own = f'{file}:{experiment.name}/{point}', [f'--config.seed={seed}']
        if finished:
            check_training(run_dir, config, [*own, *overrides])
            continue
        own.append(f'--config.run_dir={run_dir}')
        if tokenizer := experiment.points[point].tokenizer:
            own.append(f'--config.tokenizer={_model(out, tokenizer)}')
        _train([f'--config={config}', *own, *overrides], title)
    return folder


def _check_overrides(overrides: Sequence[str], points: Sequence[Point], name: str) -> None:
    """Checks that no override meets a point that trains nothing, or sets what the runner sets."""
    if overrides and any(point.evaluate is not None for point in points):
        raise UserError(
            f'{overrides[0]}: the points of {name} evaluate a model and train none; '
            'change their flags in the config file'
        )
    taken = {'seed': '--seeds', 'run_dir': '--out'}
    if any(point.tokenizer for point in points):
        taken['tokenizer'] = 'tokenizer of its points in the config file'
    for override in overrides:
        field = override.partition('=')[0].removeprefix('--config.')
        if field in taken:
            raise UserError(
                f'{override}: an experiment sets {field} of each run; use {taken[field]} instead'
            )


def _check_models(
    file: str, experiment: Experiment, runs: Sequence[tuple[int, str]], out: pathlib.Path
) -> None:
    """Checks that the models of other experiments which these runs evaluate have been trained."""
    missing = [
        (experiment.points[point].model, seed)
        for seed, point in runs
        if experiment.points[point].model
        and not _model_of_run(out, experiment.points[point].model, seed).exists()
    ]
    if missing:
        other = missing[0][0].partition('/')[0]
        points = sorted({model.partition('/')[2] for model, _ in missing})
        pattern = points[0] if len(points) == 1 else os.path.commonprefix(points) + '*'
        seeds = ','.join(str(seed) for seed in dict.fromkeys(seed for _, seed in missing))
        raise UserError(
            f'{_model_of_run(out, *missing[0])} is missing; train it with infinity-jax experiment '
            f"run {file}:{other} --only '{pattern}' --seeds {seeds} --out {out}"
        )


def _model_of_run(out: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """The model folder of EXPERIMENT/POINT, which appears when its training is finished."""
    return out / name / f'seed_{seed}' / 'model'


def _train_tokenizers(
    file: str, experiment: Experiment, points: Sequence[str], out: pathlib.Path
) -> None:
    """Trains the tokenizers of the points, unless `out` has them."""
    for name in dict.fromkeys(experiment.points[point].tokenizer for point in points):
        if not name:
            continue
        config, run_dir = f'{file}:{TOKENIZERS}/{name}', _model(out, name).parent
        if _model(out, name).exists():
            check_training(run_dir, config)
        else:
            title = f'tokenizer {name}'
            print(title, flush=True)
            _train([f'--config={config}', f'--config.run_dir={run_dir}'], title)


def _model(out: pathlib.Path, tokenizer: str) -> pathlib.Path:
    """The model folder of a tokenizer, which appears when its training is finished."""
    return out / TOKENIZERS / tokenizer / 'model'


def _evaluate(
    flags: Sequence[str], checkpoint: Sequence[str], run_dir: pathlib.Path, finished: bool
) -> None:
    """Runs `infinity-jax evaluate` in this process, which compiles its programs once.

    A finished evaluation is only compared with the flags and the model.

    Args:
      flags: kind of evaluation and its flags.
      checkpoint: the flag that names the model of another experiment, or nothing.
      run_dir: folder of the evaluation.
      finished: whether its result is there.
    """
    parser = argparse.ArgumentParser(prog='infinity-jax evaluate')
    add_kinds(parser)
    args = parser.parse_args([*flags, *checkpoint, f'--out={run_dir}'])
    model = args.checkpoint or DEMO_FOLDER
    if finished:
        check_evaluation(run_dir, flags, pathlib.Path(model))
        return
    save_evaluation(run_dir, flags, local_folder(model))
    args.run(args)


def _train(flags: list[str], title: str) -> None:
    """Runs the trainer; a request to stop reaches it, and it saves its state first."""
    child = subprocess.Popen([sys.executable, '-m', TRAIN, *flags])
    before = signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    try:
        code = child.wait()
    except KeyboardInterrupt:
        code = child.wait()  # the trainer has received it too
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise UserError(f'{title} ended with exit code {code}, see above; start again to go on')
