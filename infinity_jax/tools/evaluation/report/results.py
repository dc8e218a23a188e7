"""Readers of the files that judges write."""

import collections
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.report.intervals import Estimate, accuracy, average, mean
from infinity_jax.tools.evaluation.report.references import OVERALL

# Images, or for DPG-Bench grids, of the whole benchmark as published.
PUBLISHED = {'geneval': 2212, 'dpg': 1065, 'imagereward': 1000, 'hpsv2': 3200}
GENEVAL_TASKS = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')
HPS_STYLES = ('anime', 'concept-art', 'paintings', 'photo')
HPS_GROUPS = 10  # of 80 prompts, whose spread HPSv2 prints
HPS_QUANTILE = 2.262  # of Student's t with 9 degrees of freedom, at 0.975
HPS_LINE = re.compile(
    r'^.*?\b(anime|concept-art|paintings|photo)[ \t]+(-?[\d.]+|nan)[ \t]+([\d.]+|nan)[ \t]*$', re.M
)
DPG_SCORE = re.compile(r'^DPG-Bench score:\s*(\S+)\s*$', re.M)
_DPG_CATEGORIES = re.compile(r'^L1 category scores:\n((?:\t.*\n)*)', re.M)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a report: a task or category, its score and the number of images behind it."""

    name: str
    estimate: Estimate
    images: int | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """The scores in one file of a judge.

    Attributes:
      benchmark: its name.
      file: that the scores are from.
      rows: by task; the last one is that of all together.
      images: images, or grids, that were judged.
      notes: sentences for the user.
    """

    benchmark: str
    file: pathlib.Path
    rows: tuple[Row, ...]
    images: int | None
    notes: tuple[str, ...] = ()


def read_geneval(path: pathlib.Path) -> Results:
    """GenEval's results: a JSON line per image. The score is the mean of the tasks' accuracies.

    Raises:
      UserError: a line is cut off or of something else.
    """
    lines = [line for line in read_file(path).split('\n') if line.strip()]
    if not lines:
        raise UserError(f'{path}: empty; run the judge again')
    tasks: dict[str, dict[str, list[bool]]] = collections.defaultdict(dict)
    files: set[str] = set()
    for number, line in enumerate(lines, 1):
        entry = _line(path, number, line, len(lines))
        tag, correct = entry.get('tag'), entry.get('correct')
        if not isinstance(tag, str) or correct not in (True, False):
            raise UserError(
                f'{path}: line {number} has no tag and correct (true or false); wanted the results '
                "of GenEval's evaluate_images.py"
            )
        file = entry.get('filename')
        if file in files:
            raise UserError(
                f'{path}: line {number} judges {file} a second time; remove the file and run the '
                'judge again'
            )
        files |= {file} if file else set()
        prompt = str(entry.get('metadata') or entry.get('prompt') or number)
        tasks[tag].setdefault(prompt, []).append(bool(correct))
    rows = []
    for tag, prompts in tasks.items():
        groups = list(prompts.values())
        rows.append(Row(tag, accuracy(groups), sum(map(len, groups))))
    overall = Row(OVERALL, average([row.estimate for row in rows]), len(lines))
    notes = _absent('tasks', GENEVAL_TASKS, tasks)
    return Results('geneval', path, (*rows, overall), len(lines), notes)


def is_prompt_file(path: pathlib.Path) -> bool:
    """Whether the lines of a file are GenEval's prompts, which some keep next to the results."""
    try:
        first = json.loads(read_file(path).split('\n', 1)[0])
    except json.JSONDecodeError:
        return False
    return isinstance(first, dict) and 'include' in first and 'correct' not in first


def read_imagereward(path: pathlib.Path, content: Any) -> Results:
    """ImageReward's: the averages of the released script, or its benchmark's list by prompt.

    Raises:
      UserError: a score is not a number.
    """
    if isinstance(content, dict):
        value = as_number(path, 'average_image_reward', content.get('average_image_reward'))
        images = content.get('images')
        images = images if isinstance(images, int) else None
        note = 'no interval: the file has the mean alone, not a score per image'
        row = Row(OVERALL, Estimate(value), images)
        return Results('imagereward', path, (row,), images, (note,))
    groups = []
    for i, entry in enumerate(content):
        rewards = entry.get('rewards') if isinstance(entry, dict) else None
        rewards = rewards or None if isinstance(rewards, list) else [rewards]
        name = f'entry {i + 1}: rewards'
        groups.append([as_number(path, name, each) for each in rewards or [None]])
    images = sum(map(len, groups))
    row = Row(OVERALL, mean([sum(group) / len(group) for group in groups]), images)
    return Results('imagereward', path, (row,), images)


def read_hpsv2(path: pathlib.Path, text: str) -> Results:
    """What `hpsv2.evaluate` prints: mean and spread over ten groups of prompts, by style.

    Some versions of the package print shares, others percent; the report has percent.

    Raises:
      UserError: a score is not a number, because images were missing.
    """
    rows: list[Row] = []
    for style, value, spread in HPS_LINE.findall(text):
        if any(row.name == style for row in rows):
            raise UserError(
                f'{path}: {style} appears twice, from two runs; remove the lines of the first one'
            )
        score, deviation = (as_number(path, style, each) for each in (value, spread))
        factor = 100 if abs(score) < 1 else 1
        half = HPS_QUANTILE * deviation / math.sqrt(HPS_GROUPS - 1)  # it divides by 10, not by 9
        estimate = Estimate(*(factor * x for x in (score, score - half, score + half)))
        rows.append(Row(style, estimate, 800))
    overall = Row(OVERALL, average([row.estimate for row in rows]), 800 * len(rows))
    notes = _absent('styles', HPS_STYLES, [row.name for row in rows])
    return Results('hpsv2', path, (*rows, overall), 800 * len(rows), notes)


def read_hpsv2_scores(path: pathlib.Path, content: Any) -> Results:
    """HPSv2's scores by image, as `evaluate score` writes them; the report has percent.

    Raises:
      UserError: an entry has no score.
    """
    styles: dict[str, list[float]] = collections.defaultdict(list)
    for i, entry in enumerate(content):
        style = pathlib.PurePosixPath(entry['files'][0]).parent.name
        (reward,) = entry['rewards']
        styles[style].append(100 * as_number(path, f'entry {i + 1}: rewards', reward))
    rows = [Row(style, mean(values), len(values)) for style, values in styles.items()]
    overall = Row(OVERALL, average([row.estimate for row in rows]), len(content))
    return Results('hpsv2', path, (*rows, overall), len(content))


def read_dpg(path: pathlib.Path, text: str) -> Results:
    """DPG-Bench's results: a line per grid, then scores by category and in all, in percent.

    Raises:
      UserError: the score is missing, because the judge was stopped.
    """
    head = text.split('\nModel: ')[0] if not text.startswith('Model: ') else ''
    grids = [line.rsplit(', ', 1)[-1] for line in head.splitlines() if ', ' in line]
    found = DPG_SCORE.search(text)
    if found is None:
        raise UserError(
            f'{path}: no line "DPG-Bench score" after {len(grids)} images; the judge was stopped: '
            'run it again'
        )
    score = as_number(path, 'DPG-Bench score', found[1])
    values = [100 * as_number(path, f'image {i}', each) for i, each in enumerate(grids, 1)]
    rows = []
    categories = _DPG_CATEGORIES.search(text)
    for line in categories[1].splitlines() if categories else ():
        name, _, value = line.strip().rpartition(': ')
        rows.append(Row(name, Estimate(as_number(path, name, value))))
    overall = mean(values, score) if values else Estimate(score)
    images = len(values) or None
    return Results('dpg', path, (*rows, Row(OVERALL, overall, images)), images)


def read_file(path: pathlib.Path) -> str:
    """A file of text; a UserError if it cannot be read."""
    try:
        return path.read_text(encoding='utf-8-sig')
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}; run the judge again') from None
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: byte {error.start} is not UTF-8; run the judge again') from None


def _absent(kind: str, wanted: Iterable[str], found: Iterable[str]) -> tuple[str, ...]:
    """A note on what an overall score leaves out, if anything."""
    absent = [name for name in wanted if name not in [*found]]
    return (f'overall is without the {kind} {", ".join(absent)}',) if absent else ()


def _line(path: pathlib.Path, number: int, line: str, count: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        cut = 'is cut off' if number == count else f'is not JSON ({error.msg})'
        raise UserError(f'{path}: line {number} of {count} {cut}; run the judge again') from None
    if not isinstance(entry, dict):
        raise UserError(f'{path}: line {number} is not a JSON object; run the judge again')
    return entry


def as_number(path: pathlib.Path, name: str, value: Any) -> float:
    """A finite number; a UserError with the file and name if the value is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f'{path}: {name} is {value!r}; wanted a number: run the judge again')
    return number
