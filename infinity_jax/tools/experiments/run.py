"""Trains and judges the points of an experiment, one after the other."""

import argparse
import fnmatch
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.evaluate_command import add_kinds
from infinity_jax.tools.experiments.experiment import (
    TOKENIZERS,
    Experiment,
    read_experiment,
    save_experiment,
)
from infinity_jax.tools.experiments.figures import EVALUATION

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
      UserError: there is no such experiment or point, a run failed, or there are overrides for
        points that train nothing.
    """
    file, experiment = spec.partition(':')[0], read_experiment(spec)
    points = fnmatch.filter(experiment.points, only)
    if not points:
        raise UserError(f'--only {only}: no such point; known: {", ".join(experiment.points)}')
    if overrides and any(experiment.points[point].evaluate is not None for point in points):
        raise UserError(
            f'{overrides[0]}: the points of {experiment.name} evaluate a model and train none; '
            'change their flags in the config file'
        )
    folder = out / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    save_experiment(folder, experiment)
    _train_tokenizers(file, experiment, points, out)
    runs = [(seed, point) for seed in seeds for point in points]
    for number, (seed, point) in enumerate(runs, 1):
        run_dir = folder / point / f'seed_{seed}'
        title = f'run {number} of {len(runs)}: {point}, seed {seed}'
        if (run_dir / EVALUATION).exists():
            print(f'{title}: finished before', flush=True)
            continue
        print(title, flush=True)
        flags = experiment.points[point].evaluate
        if flags is not None:
            _evaluate([*flags, f'--seed={seed}', f'--out={run_dir}'])
            continue
        tokenizer = experiment.points[point].tokenizer
        _train(
            [
                f'--config={file}:{experiment.name}/{point}',
                f'--config.seed={seed}',
                f'--config.run_dir={run_dir}',
                *([f'--config.tokenizer={_model(out, tokenizer)}'] if tokenizer else []),
                *overrides,
            ],
            title,
        )
    return folder


def _train_tokenizers(
    file: str, experiment: Experiment, points: Sequence[str], out: pathlib.Path
) -> None:
    """Trains the tokenizers of the points, unless `out` has them."""
    for name in dict.fromkeys(experiment.points[point].tokenizer for point in points):
        if name and not _model(out, name).exists():
            title = f'tokenizer {name}'
            print(title, flush=True)
            run_dir = _model(out, name).parent
            _train(
                [f'--config={file}:{TOKENIZERS}/{name}', f'--config.run_dir={run_dir}'],
                title,
            )


def _model(out: pathlib.Path, tokenizer: str) -> pathlib.Path:
    """The model folder of a tokenizer, which appears when its training is finished."""
    return out / TOKENIZERS / tokenizer / 'model'


def _evaluate(flags: Sequence[str]) -> None:
    """Runs `infinity-jax evaluate demo` in this process, which compiles its programs once."""
    parser = argparse.ArgumentParser(prog='infinity-jax evaluate')
    add_kinds(parser)
    args = parser.parse_args(['demo', *flags])
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
