"""The command `infinity-jax experiment`: trains the points of an experiment, and reports them."""

import argparse
import pathlib

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.flag_types import input_path, local_path


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """The commands `run` and `report`, each with its flags."""
    commands = parser.add_subparsers(
        dest='experiment_command', required=True, title='commands', metavar='COMMAND'
    )
    add = lambda name, text: commands.add_parser(name, help=text, description=text)
    run = add('run', 'Train and judge every point; started again, go on with those unfinished.')
    run.add_argument(
        'config',
        type=local_path,
        metavar='FILE:NAME',
        help='such as configs/experiments.py:self_correction; --config.FIELD=VALUE changes a '
        'field of all points',
    )
    run.add_argument(
        '--seeds', default='0,1,2', metavar='S[,S…]', help='of the runs (default: %(default)s)'
    )
    run.add_argument(
        '--only', default='*', metavar='PATTERN', help="of the points' names (default: all)"
    )
    run.add_argument(
        '--out', type=local_path, default='runs/experiments', metavar='DIR',
        help='folder of the experiments (default: %(default)s)',
    )  # fmt: skip
    run.set_defaults(run=run_points, overrides=())
    report = add('report', 'Show means and spreads over seeds: a table, JSON and a plot.')
    report.add_argument('folder', type=input_path, metavar='DIR', help='folder of an experiment')
    report.set_defaults(run=run_report)


def run_points(args: argparse.Namespace) -> None:
    """Trains the points, then reports them."""
    from infinity_jax.tools.experiments.report import report_experiment
    from infinity_jax.tools.experiments.run import run_experiment

    try:
        seeds = [int(seed) for seed in args.seeds.split(',')]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0:
        raise UserError(f'--seeds {args.seeds}: wanted whole numbers from 0 on, such as 0,1,2')
    folder = run_experiment(
        args.config,
        seeds=seeds,
        only=args.only,
        out=pathlib.Path(args.out),
        overrides=args.overrides,
    )
    report_experiment(folder)


def run_report(args: argparse.Namespace) -> None:
    """Prints the table of an experiment."""
    from infinity_jax.tools.experiments.report import report_experiment

    report_experiment(pathlib.Path(args.folder))
