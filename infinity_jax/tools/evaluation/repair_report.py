"""The report of `evaluate repair`: a table, JSON, a sheet of images and a plot."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.images import contact_sheet, save_png

JSON, SHEET, PLOT = 'repair.json', 'repair.png', 'repair_rates.png'
# Rows: the model's images, and the true images through the tokenizer with flipped bits.
GENERATED, REPAIRED, IGNORED = 'generated', 'repaired', 'ignored'
ROWS = {
    GENERATED: 'generated',
    REPAIRED: 'true images, repaired',
    IGNORED: 'true images, flips ignored',
}
KINDS = {'trained': 'trained pairs', 'held_out': 'held-out pairs'}


class Shown(NamedTuple):
    """An image on the sheet, uint8 (Y, X, 3), and whether the matcher finds it right."""

    image: np.ndarray
    caption: str
    rate: float
    right: bool


def write_report(out: pathlib.Path, results: dict[str, Any], shown: Sequence[Shown]) -> None:
    """Prints the table and writes the three files into `out`.

    Raises:
      UserError: the folder cannot be written.
    """
    print(table(results))
    captions = dict.fromkeys(each.caption for each in shown)
    rates = len(results['rates'])
    # A row per caption, a column per rate.
    ordered = [each for text in captions for each in shown if each.caption == text]
    titles = [
        f'{each.caption}: {100 * each.rate:g} % flipped'
        if i % rates == 0
        else f'{100 * each.rate:g} %'
        for i, each in enumerate(ordered)
    ]
    sheet = contact_sheet(
        [each.image for each in ordered], titles, [each.right for each in ordered], columns=rates
    )
    save_png(out / SHEET, sheet)
    try:
        plot(results, out / PLOT)
        (out / JSON).write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
    except OSError as error:
        raise UserError(f'cannot write to {out}: {error}; choose another folder') from None
    print(f'{out}: {JSON}, {SHEET}, {PLOT}')


def table(results: dict[str, Any]) -> str:
    """The figures as text, one line per row and rate."""
    lines = [
        f'{results["count"]} captions of each kind, {results["candidates"]} candidate emoji; '
        'bits flipped in all scales but the last',
        f'{"images":28}{"flipped":>8}{"emoji right, trained pairs":>28}{"held-out pairs":>26}'
        f'{"backgrounds":>13}{"distance":>10}',
    ]
    for row in rows_of(results):
        for rate, kinds in results['rates'].items():
            figures = [kinds[kind][row] for kind in KINDS]
            cells = [_with_interval(each['emoji']) for each in figures]
            background, distance = (
                np.mean([each['background']['value'] for each in figures]),
                np.mean([each['distance'] for each in figures]),
            )
            lines.append(
                f'{ROWS[row]:28}{float(rate):>8.1%}{cells[0]:>28}{cells[1]:>26}{background:>13.1%}'
                f'{distance:>10.1f}'
            )
    return '\n'.join(lines)


def rows_of(results: dict[str, Any]) -> list[str]:
    """The rows that there are: the references may be left out."""
    (kinds, *_) = results['rates'].values()
    return [*kinds['trained']]


def _with_interval(share: dict[str, float]) -> str:
    return f'{share["value"]:.1%} ({share["low"]:.1%} to {share["high"]:.1%})'


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Emoji right, with 95 % intervals, and the change of the pixels by rate, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3.6), layout='constrained')
    shares, changes = figure.subplots(1, 2)
    rates = [100 * float(rate) for rate in results['rates']]
    styles = {GENERATED: '-', REPAIRED: '--', IGNORED: ':'}
    for number, (kind, kind_title) in enumerate(KINDS.items()):
        for row in rows_of(results):
            figures = [kinds[kind][row] for kinds in results['rates'].values()]
            emoji = [each['emoji'] for each in figures]
            values = np.array([100 * each['value'] for each in emoji])
            line = {'color': f'C{number}', 'linestyle': styles[row]}
            if row == GENERATED:
                low, high = (np.array([100 * e[end] for e in emoji]) for end in ('low', 'high'))
                shares.errorbar(
                    rates, values, (values - low, high - values), marker='.', capsize=3, **line
                )
            else:
                shares.plot(rates, values, **line)
            distances = [each['distance'] for each in figures]
            changes.plot(rates, distances, label=f'{ROWS[row]}, {kind_title}', **line)
    shares.set(ylabel='emoji right (%)', ylim=(0, 102))
    changes.set(ylabel='change of the pixels (RMS, of 255)')
    for axes in (shares, changes):
        axes.set(xlabel='bits flipped (%)')
        axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=2, fontsize='small', frameon=False)
    figure.savefig(path, dpi=100)
