"""Readers of the scores that the judges of this package write."""

import pathlib
from collections.abc import Sequence
from typing import Any

from infinity_jax.tools.evaluation.report.intervals import Estimate, accuracy, mean
from infinity_jax.tools.evaluation.report.references import OVERALL
from infinity_jax.tools.evaluation.report.results import Results, Row, as_number

FID_METRICS = ('FID', 'KID', 'precision', 'recall')


def read_fid(path: pathlib.Path, content: dict[str, Any]) -> Results:
    """FID, KID, precision and recall, as `evaluate fid` writes them."""
    images = min(content['images'].values())
    rows = [
        Row(name, Estimate(as_number(path, name, content[name])), images) for name in FID_METRICS
    ]
    notes = [f'weights: {content["weights"]}', _calibration('FID', content['calibration'])]
    if images < 10_000:
        notes.append(f'a FID of {images} images is larger than one of more: compare equal numbers')
    return Results('fid', path, tuple(rows), images, tuple(notes))


def read_clip(path: pathlib.Path, content: dict[str, Any]) -> Results:
    """CLIP scores by image, as `evaluate clip` writes them."""
    groups = [
        [100 * max(as_number(path, f'entry {i}: cosines', x), 0.0) for x in entry['cosines']]
        for i, entry in enumerate(content['entries'], 1)
    ]
    images = sum(map(len, groups))
    total = sum(map(sum, groups))
    row = Row(OVERALL, mean([sum(x) / len(x) for x in groups], total / images), images)
    notes = (f'model: {content["model"]}', _calibration('score', content['calibration']))
    return Results('clip', path, (row,), images, notes)


def read_text(path: pathlib.Path, content: dict[str, Any]) -> Results:
    """Shares of text that was read, as `evaluate text` writes them."""
    groups: list[Sequence[Any]] = [entry['scores'] for entry in content['entries']]
    images = sum(map(len, groups))
    rows = []
    for name in ('characters', 'words'):
        means = [
            sum(as_number(path, name, x[name]) for x in group) / len(group) for group in groups
        ]
        rows.append(Row(name, mean(means), images))
    exact = accuracy([[bool(x['exact']) for x in group] for group in groups])
    shares = {name: pair[0] for name, pair in content['calibration'].items()}
    note = _calibration('share of characters', shares)
    return Results('text', path, (*rows, Row('all words', exact, images)), images, (note,))


def _calibration(what: str, values: dict[str, float]) -> str:
    return f'calibration, {what}: ' + ', '.join(f'{k} {v:.2f}' for k, v in values.items())
