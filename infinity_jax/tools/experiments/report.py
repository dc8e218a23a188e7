"""The report of an experiment: means and spreads over seeds, as a table, JSON and a plot."""

import json
import pathlib
import statistics
from typing import Any

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.tools.experiments.experiment import Experiment, load_experiment
from infinity_jax.training.metrics import read_metrics

EVALUATION = 'evaluation.json'  # of `evaluate_demo`, the last file that a run writes
TEXT, JSON, PLOT = 'report.txt', 'report.json', 'report.png'
# Name -> heading, factor and format of the table.
COLUMNS = {
    'emoji_trained': ('emoji right', 100, '.1f'),
    'emoji_held_out': ('held-out pairs', 100, '.1f'),
    'accuracy': ('bit accuracy', 100, '.2f'),
    'loss': ('loss', 1, '.4f'),
}
PLOTTED = ('emoji_trained', 'emoji_held_out', 'loss')


def report_experiment(folder: pathlib.Path) -> dict[str, Any]:
    """Prints the table of an experiment and writes report.txt, report.json and report.png.

    Args:
      folder: of the experiment, with a folder of runs per point.

    Returns:
      the content of report.json: per point its position, line, and per figure the values by seed,
      their mean, smallest and largest.

    Raises:
      UserError: no run is finished, or a file is damaged.
    """
    experiment = load_experiment(folder)
    results = {}
    for name, point in experiment.points.items():
        runs = sorted((folder / name).glob(f'seed_*/{EVALUATION}'))
        if runs:
            figures = _summaries([_figures(path.parent) for path in runs])
            results[name] = {'x': point.x, 'series': point.series, 'runs': len(runs), **figures}
    if not results:
        raise UserError(f'{folder}: no run is finished; start infinity-jax experiment run')
    report = {'experiment': experiment.name, 'points': results}
    text = table(experiment, results)
    (folder / TEXT).write_text(text + '\n', encoding='utf-8')
    (folder / JSON).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    _plot(experiment, results, folder / PLOT)
    print(text)
    return report


def table(experiment: Experiment, results: dict[str, Any]) -> str:
    """One row per point: runs, then mean and range over seeds of each figure."""
    width = max(len(name) for name in (*results, 'point'))
    heads = ''.join(f'{head:>26}' for head, _, _ in COLUMNS.values())
    lines = [experiment.title, f'{"point":{width}}{"runs":>6}{heads}']
    for name, result in results.items():
        cells = ''
        for column, (_, factor, form) in COLUMNS.items():
            mean, low, high = (
                format(factor * result[column][key], form) for key in ('mean', 'min', 'max')
            )
            cells += f'{f"{mean} ({low} to {high})":>26}'
        lines.append(f'{name:{width}}{result["runs"]:>6}{cells}')
    missing = [name for name in experiment.points if name not in results]
    if missing:
        lines.append(f'not finished: {", ".join(missing)}')
    return '\n'.join(lines)


def _figures(run_dir: pathlib.Path) -> dict[str, float]:
    """The figures of a finished run: the matcher's, and those of the last held-out evaluation."""
    path = run_dir / EVALUATION
    try:
        judged = json.loads(path.read_text(encoding='utf-8'))
        emoji = {
            f'emoji_{kind}': float(judged[kind]['generated']['emoji'])
            for kind in ('trained', 'held_out')
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path} is damaged ({in_one_line(error)}); remove it and run the experiment again'
        ) from None
    evaluations = read_metrics(run_dir, 'heldout')
    if not evaluations:
        raise UserError(f'{run_dir} has no held-out evaluation; remove the run and start it again')
    return {**emoji, 'accuracy': evaluations[-1]['accuracy'], 'loss': evaluations[-1]['loss']}


def _summaries(runs: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    summaries = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        summaries[name] = {
            'values': values,
            'mean': statistics.fmean(values),
            'min': min(values),
            'max': max(values),
        }
    return summaries


def _plot(experiment: Experiment, results: dict[str, Any], path: pathlib.Path) -> None:
    """A panel per figure, a line per series, and bars from the smallest to the largest seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(PLOTTED), 3.8), layout='constrained')
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(PLOTTED)), PLOTTED, strict=True):
        heading, factor, _ = COLUMNS[name]
        for series in dict.fromkeys(result['series'] for result in results.values()):
            points = sorted(
                ((r['x'], r[name]) for r in results.values() if r['series'] == series),
                key=lambda point: point[0],
            )
            means = [factor * summary['mean'] for _, summary in points]
            errors = [
                [abs(factor * (s[end] - s['mean'])) for _, s in points] for end in ('min', 'max')
            ]
            axes.errorbar(
                [x for x, _ in points], means, errors, marker='.', capsize=3, label=series
            )
        if experiment.log_axis:
            axes.set_xscale('log')
        axes.set(xlabel=experiment.axis, ylabel=heading + (' (%)' if factor == 100 else ''))
    axes.legend()
    figure.suptitle(experiment.title)
    figure.savefig(path, dpi=100, format='png')
