"""The report of a benchmark folder: text, JSON and a plot."""

import json
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.benchmarks.settings import FILE, read_run
from infinity_jax.tools.evaluation.report.find import find_results
from infinity_jax.tools.evaluation.report.references import REFERENCES
from infinity_jax.tools.evaluation.report.results import PUBLISHED, Results

TEXT, JSON, PLOT = 'report.txt', 'report.json', 'report.png'
DIGITS = {'geneval': 3, 'imagereward': 3, 'dpg': 2, 'hpsv2': 2, 'fid': 4, 'clip': 2, 'text': 3}
JUDGES = ('fid', 'clip', 'text')  # of the images of any benchmark
WANTED = (
    'wanted results.jsonl of GenEval, image_reward_res.json, what hpsv2.evaluate prints as a .txt, '
    'dpg_results.txt, or what evaluate score, fid, clip or text writes'
)


def write_report(folder: pathlib.Path) -> list[str]:
    """Prints the tables; writes report.txt, report.json and report.png into the folder.

    Returns:
      a line about each file that cannot be read.

    Raises:
      UserError: there are no results, or the folder cannot be written.
    """
    results, problems = find_results(folder)
    if not results and not problems:
        raise UserError(f'{folder}: no results of a judge in it; {WANTED}')
    if not results:
        return problems
    run = _run_of(folder)
    text = '\n\n'.join(
        table(each, run if each.benchmark in (run.get('benchmark'), *JUDGES) else {})
        for each in results
    )
    print(text)
    content = [figures(each) for each in results]
    try:
        (folder / TEXT).write_text(text + '\n', encoding='utf-8')
        (folder / JSON).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
        shown = [each for each in results if each.benchmark != 'fid']  # its figures share no scale
        if shown:
            plot(shown, folder / PLOT)
    except OSError as error:
        raise UserError(f'{folder}: cannot be written ({error.strerror})') from None
    print(f'\n{folder}: {TEXT}, {JSON}{f", {PLOT}" if shown else ""}')
    return problems


def table(results: Results, run: Mapping[str, Any] = types.MappingProxyType({})) -> str:
    """The scores as text, with a column per reference and a line that names its source.

    Args:
      results: of one judge.
      run: the content of run.json, for its settings.
    """
    references = REFERENCES.get(results.benchmark, ())
    digits = DIGITS[results.benchmark]
    heads = ''.join(f'{f"[{i}]":>8}' for i in range(1, len(references) + 1))
    lines = [f'{results.benchmark}: {results.file.name}{_settings(run)}']
    width = max(20, *(len(row.name) + 2 for row in results.rows))
    lines.append(f'{"":{width}}{"score":>8}  {"95 % interval":19}{"images":>7}{heads}')
    for row in results.rows:
        value, low, high = row.estimate
        interval = 'unknown' if low is None else f'{low:.{digits}f} to {high:.{digits}f}'
        columns = ''.join(
            f'{reference.figures[row.name]:8.{digits}f}'
            if row.name in reference.figures
            else ' ' * 8
            for reference in references
        )
        images = '' if row.images is None else row.images
        line = f'{row.name:{width}}{value:8.{digits}f}  {interval:19}{images:>7}{columns}'
        lines.append(line.rstrip())
    lines += [f'[{i}] {each.name}: {each.source}' for i, each in enumerate(references, 1)]
    return '\n'.join([*lines, *(f'note: {note}' for note in notes(results))])


def notes(results: Results) -> tuple[str, ...]:
    """Sentences on what the figures lack."""
    published = PUBLISHED.get(results.benchmark)
    if None in (published, results.images) or results.images == published:
        return results.notes
    return (
        *results.notes,
        f'{results.images} of the {published} images of the benchmark were judged: not comparable '
        'with published figures',
    )


def figures(results: Results) -> dict[str, Any]:
    """The report of a judge as plain data."""
    rows = [
        {'name': row.name, **row.estimate._asdict(), 'images': row.images} for row in results.rows
    ]
    references = [
        {'name': each.name, 'source': each.source, 'figures': dict(each.figures)}
        for each in REFERENCES.get(results.benchmark, ())
    ]
    return {
        'benchmark': results.benchmark,
        'file': results.file.name,
        'rows': rows,
        'references': references,
        'notes': list(notes(results)),
    }


def plot(results: Sequence[Results], path: pathlib.Path) -> None:
    """Plots the scores with their intervals, and the references as marks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2 * len(results)), layout='constrained')
    FigureCanvasAgg(figure)
    for axes, each in zip(figure.subplots(len(results), squeeze=False)[:, 0], results, strict=True):
        names = [row.name for row in each.rows]
        for i, row in enumerate(each.rows):
            value, low, high = row.estimate
            axes.bar(i, value, color='C0', alpha=0.5, width=0.6)
            if low is not None and high is not None:
                axes.errorbar(i, value, [[value - low], [high - value]], color='black', capsize=4)
        for k, reference in enumerate(REFERENCES.get(each.benchmark, ())):
            found = [(names.index(n), v) for n, v in reference.figures.items() if n in names]
            if found:
                x, y = zip(*found, strict=True)
                axes.plot(x, y, 'x', color=f'C{k + 1}', label=reference.name)
        axes.set_xticks(range(len(names)), names, rotation=30, ha='right')
        axes.set_title(each.benchmark)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize='small', loc='center left', bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100)


def _run_of(folder: pathlib.Path) -> dict[str, Any]:
    """The content of run.json; nothing if the images are from elsewhere."""
    return read_run(folder) if (folder / FILE).exists() else {}


def _settings(run: Mapping[str, Any]) -> str:
    """What decides the scores, for the first line of a table."""
    if not run:
        return ''
    sampling = run.get('sampling', {})
    numbers = ', '.join(
        f'{name} {",".join(map(str, sampling[name]))}'
        for name in ('guidance', 'temperature')
        if isinstance(sampling.get(name), list)
    )
    rewritten = (run.get('rewritten') or {}).get('sha256')
    prompts = 'rewritten prompts' if rewritten else 'prompts as published'
    parts = [str((run.get('model') or {}).get('name')), numbers, prompts]
    return f' ({", ".join(filter(None, parts))})'
