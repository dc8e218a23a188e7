"""Trains and judges the points of an experiment, one after the other."""

import argparse
import dataclasses
import fnmatch
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import DEMO_FOLDER, local_folder
from infinity_jax.tools.commands.config_flags import read_config_file
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
from infinity_jax.training.init_from import run_config

TRAIN = 'infinity_jax.main'


@dataclasses.dataclass(frozen=True)
class Run:
    """A point with one seed.

    Attributes:
      file: the config file.
      experiment, name: of the point.
      point: what is trained or evaluated.
      seed: of the training, or of the evaluation.
      out: folder of all experiments.
    """

    file: str
    experiment: str
    name: str
    point: Point
    seed: int
    out: pathlib.Path

    @property
    def folder(self) -> pathlib.Path:
        """The folder of this run."""
        return self.out / self.experiment / self.name / f'seed_{self.seed}'

    @property
    def finished(self) -> bool:
        """Whether its last file is there."""
        return (self.folder / self.point.result).exists()

    @property
    def model(self) -> pathlib.Path | None:
        """The model of another experiment that is evaluated; it appears when it is trained."""
        name = self.point.model
        return self.out / name / f'seed_{self.seed}' / 'model' if name else None

    @property
    def config(self) -> str:
        """FILE:VARIANT of a training."""
        return f'{self.file}:{self.experiment}/{self.name}'

    def settings(self, overrides: Sequence[str]) -> list[str]:
        """--config.FIELD=VALUE of a training, besides its folder."""
        tokenizer = self.point.tokenizer
        own = [f'--config.tokenizer={_tokenizer(self.out, tokenizer)}'] if tokenizer else []
        return [f'--config.seed={self.seed}', *own, *overrides]


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
    names = fnmatch.filter(experiment.points, only)
    if not names:
        raise UserError(f'--only {only}: no such point; known: {", ".join(experiment.points)}')
    _check_overrides(overrides, experiment, names)
    runs = [
        Run(file, experiment.name, name, experiment.points[name], seed, out)
        for seed in dict.fromkeys(seeds)
        for name in names
    ]
    _check_models([run for run in runs if not run.finished])
    for run in runs:  # all mistakes show before hours of training
        _check(run, overrides)
    folder = out / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    save_experiment(folder, experiment)
    if _train_tokenizers([run for run in runs if not run.finished]):
        for run in runs:
            _check(run, overrides)
    for number, run in enumerate(runs, 1):
        title = f'run {number} of {len(runs)}: {run.name}, seed {run.seed}'
        print(f'{title}: finished before' if run.finished else title, flush=True)
        if run.finished:
            continue
        if run.point.evaluate is None:
            flags = run.settings(overrides)
            _train([f'--config={run.config}', f'--config.run_dir={run.folder}', *flags], title)
        else:
            _evaluate(run)
    return folder


def _check(run: Run, overrides: Sequence[str]) -> None:
    """Checks the settings of a run that is not finished, and a finished one against them."""
    if run.point.evaluate is not None:
        args = _flags(run)
        if run.finished:
            model = pathlib.Path(args.checkpoint or DEMO_FOLDER)
            check_evaluation(run.folder, _described(run), model)
    elif run.finished:
        check_training(run.folder, run.config, run.settings(overrides))
    else:
        run_config(read_config_file(run.config, run.settings(overrides)))


def _check_overrides(
    overrides: Sequence[str], experiment: Experiment, names: Sequence[str]
) -> None:
    """Checks that overrides fit the named points.

    None may meet a point that trains nothing, or set what the runner sets or the points vary.
    """
    points = [experiment.points[name] for name in names]
    if overrides and any(point.evaluate is not None for point in points):
        raise UserError(
            f'{overrides[0]}: the points of {experiment.name} evaluate a model and train none; '
            'change their flags in the config file'
        )
    taken = {'seed': '--seeds', 'run_dir': '--out'}
    if any(point.tokenizer for point in points):
        taken['tokenizer'] = 'tokenizer of its points in the config file'
    varied = experiment.varied_fields()
    for override in overrides:
        field = override.partition('=')[0].removeprefix('--config.')
        if field in taken:
            raise UserError(
                f'{override}: an experiment sets {field} of each run; use {taken[field]} instead'
            )
        if field in varied:
            raise UserError(
                f'{override}: the points of {experiment.name} differ in {field}; change it in the '
                'config file'
            )


def _check_models(runs: Sequence[Run]) -> None:
    """Checks that the models of other experiments which these runs evaluate have been trained."""
    missing = [run for run in runs if run.model is not None and not run.model.exists()]
    if missing:
        first, models = missing[0], [run.point.model for run in missing]
        other = models[0].partition('/')[0]
        points = sorted({model.partition('/')[2] for model in models})
        pattern = points[0] if len(points) == 1 else os.path.commonprefix(points) + '*'
        seeds = ','.join(str(seed) for seed in dict.fromkeys(run.seed for run in missing))
        raise UserError(
            f'{first.model} is missing; train it with infinity-jax experiment run '
            f"{first.file}:{other} --only '{pattern}' --seeds {seeds} --out {first.out}"
        )


def _train_tokenizers(runs: Sequence[Run]) -> bool:
    """Trains the tokenizers of the runs that are not there yet; returns whether there were any."""
    trained = False
    for name, run in {run.point.tokenizer: run for run in runs if run.point.tokenizer}.items():
        config, model = f'{run.file}:{TOKENIZERS}/{name}', _tokenizer(run.out, name)
        if model.exists():
            check_training(model.parent, config)
        else:
            title = f'tokenizer {name}'
            print(title, flush=True)
            _train([f'--config={config}', f'--config.run_dir={model.parent}'], title)
            trained = True
    return trained


def _tokenizer(out: pathlib.Path, name: str) -> pathlib.Path:
    """The model folder of a tokenizer, which appears when its training is finished."""
    return out / TOKENIZERS / name / 'model'


class _FlagParser(argparse.ArgumentParser):
    """Raises mistakes as `UserError` instead of ending the process with the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _described(run: Run) -> list[str]:
    """Kind and flags of an evaluation, without those that name folders of the runner."""
    return [*(run.point.evaluate or ()), f'--seed={run.seed}']


def _flags(run: Run) -> argparse.Namespace:
    """The parsed flags of an evaluation."""
    parser = _FlagParser(prog='infinity-jax evaluate')
    add_kinds(parser)
    checkpoint = [f'--checkpoint={run.model}'] if run.model else []
    try:
        return parser.parse_args([*_described(run), *checkpoint, f'--out={run.folder}'])
    except UserError as error:
        raise UserError(f'{run.file}: evaluate of point {run.name}: {error}') from None


def _evaluate(run: Run) -> None:
    """Runs `infinity-jax evaluate` in this process, which compiles its programs once."""
    args = _flags(run)
    save_evaluation(run.folder, _described(run), local_folder(args.checkpoint or DEMO_FOLDER))
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
