"""Trains and judges the points of an experiment, one process after the other."""

import fnmatch
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

from infinity_jax.errors import UserError
from infinity_jax.tools.experiments.experiment import read_experiment, save_experiment
from infinity_jax.tools.experiments.report import EVALUATION


def run_experiment(
    spec: str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    only: str = '*',
    out: pathlib.Path = pathlib.Path('runs/experiments'),
    overrides: Sequence[str] = (),
) -> pathlib.Path:
    """Trains every point with every seed; finished runs are left as they are.

    All points get the first seed before any gets the second, so that a report is possible early.

    Args:
      spec: FILE:NAME of the experiment.
      seeds: of the runs.
      only: pattern of the points' names, such as '4_scales_*'.
      out: folder; a run is in out/NAME/POINT/seed_SEED.
      overrides: --config.FIELD=VALUE for all points.

    Returns:
      the folder of the experiment.

    Raises:
      UserError: there is no such experiment or point, or a run failed.
    """
    file, experiment = spec.partition(':')[0], read_experiment(spec)
    points = fnmatch.filter(experiment.points, only)
    if not points:
        raise UserError(f'--only {only}: no such point; known: {", ".join(experiment.points)}')
    folder = out / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    save_experiment(folder, experiment)
    runs = [(seed, point) for seed in seeds for point in points]
    for number, (seed, point) in enumerate(runs, 1):
        run_dir = folder / point / f'seed_{seed}'
        title = f'run {number} of {len(runs)}: {point}, seed {seed}'
        if (run_dir / EVALUATION).exists():
            print(f'{title}: finished before', flush=True)
            continue
        print(title, flush=True)
        _train(
            [
                f'--config={file}:{experiment.name}/{point}',
                f'--config.seed={seed}',
                f'--config.run_dir={run_dir}',
                *overrides,
            ],
            title,
        )
    return folder


def _train(flags: list[str], title: str) -> None:
    """Runs the trainer; a request to stop reaches it, and it saves its state first."""
    child = subprocess.Popen([sys.executable, '-m', 'infinity_jax.main', *flags])
    before = signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    try:
        code = child.wait()
    except KeyboardInterrupt:
        code = child.wait()  # the trainer has received it too
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise UserError(f'{title} ended with exit code {code}, see above; start again to go on')
