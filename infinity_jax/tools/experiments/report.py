"""The report of an experiment: means and spreads over seeds, as a table, JSON and a plot."""

import io
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from infinity_jax.errors import UserError
from infinity_jax.images import save_png
from infinity_jax.tools.experiments import scaling
from infinity_jax.tools.experiments.experiment import Experiment, load_experiment
from infinity_jax.tools.experiments.figures import FIGURES, read_figures
from infinity_jax.tools.experiments.finished import differing_flags
from infinity_jax.training.run_folder import differing_fields

TEXT, JSON, PLOT = 'report.txt', 'report.json', 'report.png'
WIDTH = 26  # of a column
COLOURS = 64  # of the plot, whose file is a third of the size of one with all colours
SHIFT = 0.008  # between the series of a plot, of the width of all points


def report_experiment(folder: pathlib.Path) -> dict[str, Any]:
    """Prints the table of an experiment and writes report.txt, report.json and report.png.

    Args:
      folder: of the experiment, with a folder of runs per point.

    Returns:
      the content of report.json: per point its position, line and seeds, and per figure the values
      in the order of the seeds, their mean, smallest and largest; `scaling` has the fits of an
      experiment that asks for them.

    Raises:
      UserError: no run is finished, or a file is damaged.
    """
    experiment = load_experiment(folder)
    names = dict.fromkeys((*experiment.figures, *(scaling.READ if experiment.scaling else ())))
    results, warnings, first_runs = {}, [], []
    for name, point in experiment.points.items():
        paths = (folder / name).glob(f'seed_*/{point.result}')
        named = {path.parent.name.removeprefix('seed_'): path.parent for path in paths}
        runs = {int(seed): run for seed, run in named.items() if seed.isdigit()}  # no copies
        if runs:
            seeds = sorted(runs)
            figures = _summaries([read_figures(runs[seed], names) for seed in seeds])
            described = {'x': point.x, 'series': point.series, 'runs': len(runs), 'seeds': seeds}
            results[name] = {**described, **figures}
            first_runs.append(runs[seeds[0]])
            fields = differing_fields(runs.values())
            if differing_flags(runs.values()):
                fields.append('the flags of their evaluation')
            if fields:
                warnings.append(_warning(f'the seeds of {name} differ in {", ".join(fields)}'))
    if fields := strays(experiment, first_runs):
        warnings.append(
            _warning(f'the points differ in {", ".join(fields)}, which is none of their fields')
        )
    if not results:
        raise UserError(f'{folder}: no run is finished; start infinity-jax experiment run')
    report: dict[str, Any] = {'experiment': experiment.name, 'points': results}
    lines = table(experiment, results)
    if experiment.scaling:
        report['scaling'] = scaling.fit_scaling(results)
        lines += scaling.scaling_lines(report['scaling'])
    text = '\n'.join((*lines, *warnings))
    (folder / TEXT).write_text(text + '\n', encoding='utf-8')
    (folder / JSON).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    _plot(experiment, results, folder / PLOT)
    print(text)
    return report


def _warning(what: str) -> str:
    return f'warning: {what}; remove the folders of the wrong ones and run the experiment again'


def strays(experiment: Experiment, run_dirs: Sequence[pathlib.Path]) -> list[str]:
    """Dotted names of fields in which runs of different points differ, but the points should not.

    Args:
      experiment: whose points vary some fields.
      run_dirs: a run of each point; evaluations are left out.
    """
    varied = experiment.varied_fields()
    is_varied = lambda name: any(f'{name}.'.startswith(f'{field}.') for field in varied)
    return [name for name in differing_fields(run_dirs) if not is_varied(name)]


def table(experiment: Experiment, results: dict[str, Any]) -> list[str]:
    """One line per point: runs, then mean and range over seeds of each figure."""
    width = max(len(name) for name in (*results, 'point'))
    heads = ''.join(f'{FIGURES[name].heading:>{WIDTH}}' for name in experiment.figures)
    lines = [experiment.title, f'{"point":{width}}{"runs":>6}{heads}']
    for name, result in results.items():
        cells = ''.join(
            f'{_cell(figure, result[figure]):>{WIDTH}}' for figure in experiment.figures
        )
        lines.append(f'{name:{width}}{result["runs"]:>6}{cells}')
    if missing := _missing(experiment, results):
        lines.append(f'not finished: {", ".join(missing)}')
    return lines


def _missing(experiment: Experiment, results: dict[str, Any]) -> list[str]:
    """Points without runs, and those that lack a seed which another point has."""
    all_seeds = {seed for result in results.values() for seed in result['seeds']}
    missing = []
    for name in experiment.points:
        seeds = sorted(all_seeds.difference(results.get(name, {}).get('seeds', ())))
        if name not in results:
            missing.append(name)
        elif seeds:
            missing.append(f'{name} (seed {", ".join(map(str, seeds))})')
    return missing


def _cell(figure: str, summary: dict[str, Any]) -> str:
    _, _, factor, form = FIGURES[figure]
    mean, low, high = (format(factor * summary[key], form) for key in ('mean', 'min', 'max'))
    return mean if low == high else f'{mean} ({low} to {high})'


def _summaries(runs: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    summaries = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        low, high = min(values), max(values)
        mean = min(max(statistics.fmean(values), low), high)  # that of equal values is rounded
        summaries[name] = {'values': values, 'mean': mean, 'min': low, 'max': high}
    return summaries


def _plot(experiment: Experiment, results: dict[str, Any], path: pathlib.Path) -> None:
    """A panel per figure, a line per series, and bars from the smallest to the largest seed."""
    from matplotlib.figure import Figure

    columns = min(len(experiment.figures), 2)  # a page is as wide as two panels
    rows = -(-len(experiment.figures) // columns)
    plot = Figure(figsize=(4.25 * columns, 3 * rows + 0.7), layout='constrained')
    panels = plot.subplots(rows, columns, squeeze=False).ravel()
    for axes, figure in zip(panels, experiment.figures, strict=False):
        _panel(axes, figure, results, experiment.log_axis)
        axes.set(xlabel=experiment.axis, ylabel=FIGURES[figure].heading)
    lines, labels = panels[0].get_legend_handles_labels()
    if len(panels) > len(experiment.figures):  # one place is free
        panels[-1].axis('off')
        panels[-1].legend(lines, labels, loc='center', frameon=False)
    elif len(labels) > 1:
        plot.legend(lines, labels, loc='outside lower center', ncols=4, frameon=False)
    runs = sorted({result['runs'] for result in results.values()})
    seeds = ' to '.join(str(number) for number in dict.fromkeys((runs[0], runs[-1])))
    bars = '' if runs[-1] == 1 else 's; bars: smallest to largest'
    plot.suptitle(f'{experiment.title}\n{seeds} seed{bars}', fontsize='medium')
    image = io.BytesIO()
    plot.savefig(image, dpi=100, format='png')
    save_png(path, Image.open(image).convert('RGB').quantize(COLOURS))


def _panel(axes: Any, figure: str, results: dict[str, Any], log_axis: bool) -> None:
    """One figure of all points; the series are a little apart, so that bars do not hide others."""
    factor = FIGURES[figure].factor
    places = [result['x'] for result in results.values()]
    bars = any(result['runs'] > 1 for result in results.values())
    all_series = dict.fromkeys(result['series'] for result in results.values())
    if log_axis:
        axes.set_xscale('log')
        ticks = sorted(set(places))
        axes.set_xticks(ticks, [f'{tick:.2g}' if tick < 10 else f'{tick:g}' for tick in ticks])
        axes.set_xticks([], minor=True)
    for number, series in enumerate(all_series):
        shift = bars * SHIFT * (number - (len(all_series) - 1) / 2)
        points = sorted(
            ((r['x'], r[figure]) for r in results.values() if r['series'] == series),
            key=lambda point: point[0],
        )
        x = np.array([x for x, _ in points], float)
        x = x * (max(places) / min(places)) ** shift if log_axis else x + shift * np.ptp(places)
        mean, low, high = (
            factor * np.array([summary[key] for _, summary in points])
            for key in ('mean', 'min', 'max')
        )
        caps = 3 if (high > low).any() else 0
        axes.errorbar(x, mean, (mean - low, high - mean), marker='.', capsize=caps, label=series)
    axes.grid(alpha=0.3)
