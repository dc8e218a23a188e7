"""The report of `evaluate scenes`: a table, JSON, and a sheet of images with verdicts."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.images import contact_sheet, save_png
from infinity_jax.tools.evaluation.geneval_rules import Verdict

TEXT, JSON, SHEET = 'scenes.txt', 'scenes.json', 'scenes.png'
GENERATED = 'generated'
KINDS = {'trained': 'trained combinations', 'held_out': 'held-out combinations'}


class Shown(NamedTuple):
    """An image on the sheet, uint8 (Y, X, 3), with its caption and verdict."""

    image: np.ndarray
    caption: str
    task: str
    kind: str
    verdict: Verdict


def write_report(out: pathlib.Path, results: dict[str, Any], shown: Sequence[Shown]) -> None:
    """Prints the table and writes the three files into `out`.

    Raises:
      UserError: the folder cannot be written.
    """
    text = table(results)
    print(text)
    titles = [
        '; '.join([f'{each.task}: {each.caption}', *each.verdict.reasons])
        + (' (held out)' if each.kind == 'held_out' else '')
        for each in shown
    ]
    marks = [each.verdict.correct for each in shown]
    save_png(out / SHEET, contact_sheet([each.image for each in shown], titles, marks))
    try:
        (out / TEXT).write_text(text + '\n', encoding='utf-8')
        (out / JSON).write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
    except OSError as error:
        raise UserError(f'cannot write to {out}: {error}; choose another folder') from None
    print(f'{out}: {TEXT}, {JSON}, {SHEET}')


def table(results: dict[str, Any]) -> str:
    """The scores as text: a row per task, the model's next to those of the judge."""
    lines = [f'{results["model"]}: {results["candidates"]} candidate emoji, {results["subset"]}']
    for kind, title in KINDS.items():
        rows = results[kind]
        columns = f'{GENERATED:>10}  {"95 % interval":18}{"reconstructed":>14}{"rendered":>10}'
        lines += ['', f'{title:32}{columns}{"images":>8}']
        for task, score in rows[GENERATED].items():
            interval = f'{score["low"]:.1%} to {score["high"]:.1%}'
            lines.append(
                f'{task:32}{score["value"]:>10.1%}  {interval:18}'
                f'{rows["reconstructions"][task]["value"]:>14.1%}'
                f'{rows["renders"][task]["value"]:>10.1%}{score["images"]:>8}'
            )
        lines.append(f'reconstructions have {rows["psnr"]:.1f} dB')
    return '\n'.join(lines)
