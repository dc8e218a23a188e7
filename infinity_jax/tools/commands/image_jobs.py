"""Images with settings of their own: lines of a JSON file, and cells of a grid."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.inference.job import GenerationJob
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.tools.commands.prompts import numbered_lines, read_negative, read_prompts

SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(SamplingConfig))
LINE_FIELDS = {'prompt': str, 'negative': str, 'seed': int, 'num': int}
MOST_CELLS = 400  # of a grid: a sheet of more is unreadable, and most likely a mistake


@dataclasses.dataclass(frozen=True)
class ImageJob:
    """One image: its prompts, its random key as (seed, index), and how it is sampled."""

    prompt: str
    negative: str | None
    seed: int
    index: int
    sampling: SamplingConfig


def generate_jobs(pipeline: InfinityPipeline, jobs: Sequence[ImageJob]) -> list[np.ndarray]:
    """Generates images, uint8 (Y, X, 3), in the order of the jobs; equal settings share batches."""
    kinds = [(job.negative, job.sampling) for job in jobs]
    images: dict[int, np.ndarray] = {}
    for kind in dict.fromkeys(kinds):
        numbers = [i for i, other in enumerate(kinds) if other == kind]
        negative, sampling = kind
        group = GenerationJob(
            [jobs[i].prompt for i in numbers],
            [(jobs[i].seed, jobs[i].index) for i in numbers],
            pipeline.schedule,
            sampling=sampling,
            negative=negative,
        )
        generated = (image for batch in pipeline.run(group) for image in batch)
        images |= dict(zip(numbers, generated, strict=True))
    return [images[i] for i in range(len(jobs))]


def jobs_of_lines(
    file: str, num: int, seed: int, negative: str | None, sampling: SamplingConfig
) -> list[ImageJob]:
    """The images of a JSON-lines file; what a line leaves out is as in the arguments.

    The images of a line with a seed are those that it would give alone; other lines count on.

    Args:
      file: path; each line is an object with a prompt and, if wanted, negative, seed, num and
        fields of `SamplingConfig`.
      num, seed, negative, sampling: the defaults.

    Raises:
      UserError: a line is no such object; the message names it.
    """
    jobs: list[ImageJob] = []
    for number, line in numbered_lines(file):
        try:
            fields = _parsed(line)
            own = {name: fields[name] for name in SAMPLING_FIELDS if name in fields}
            of_line = dataclasses.replace(sampling, **_as_tuples(own))
            count = fields.get('num', num)
            if count < 1:
                raise UserError(f'num is {count}; wanted 1 or more')
            line_negative = read_negative(fields['negative']) if 'negative' in fields else negative
            (prompt,) = read_prompts([fields['prompt']])
        except (UserError, TypeError) as error:
            raise UserError(f'--prompts-file {file}: line {number}: {error}') from None
        first = 0 if 'seed' in fields else len(jobs)
        jobs += [
            ImageJob(prompt, line_negative, fields.get('seed', seed), first + i, of_line)
            for i in range(count)
        ]
    if not jobs:
        raise UserError(f'--prompts-file {file}: no line; write objects such as {{"prompt": "…"}}')
    return jobs


def _parsed(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f'not JSON ({error}); wanted an object such as {{"prompt": "…"}}') from None
    if not isinstance(fields, dict) or 'prompt' not in fields:
        raise UserError(f'{line[:60]!r} has no prompt; wanted an object such as {{"prompt": "…"}}')
    known = (*LINE_FIELDS, *SAMPLING_FIELDS)
    if unknown := sorted(fields.keys() - set(known)):
        raise UserError(f'field {unknown[0]!r} is unknown; known: {", ".join(known)}')
    for name, wanted in LINE_FIELDS.items():
        value = fields.get(name, wanted())
        if not isinstance(value, wanted) or isinstance(value, bool):
            kind = 'text' if wanted is str else 'a whole number'
            raise UserError(f'{name} is {value!r}; wanted {kind}')
    return fields


def _as_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


Grid = dict[str, tuple[float | int, ...]]


def parse_grid(texts: Sequence[str]) -> Grid:
    """'guidance=1,3,5' and so on as values by field.

    Raises:
      UserError: not a field with values, or too many cells.
    """
    known = (*SAMPLING_FIELDS, 'seed')
    grid: Grid = {}
    for text in texts:
        name, _, values = text.partition('=')
        if name not in known:
            raise UserError(f'--grid {text}: {name!r} is unknown; known: {", ".join(known)}')
        try:
            whole = name in ('seed', 'top_k', 'guidance_layer', 'unguided_scales')
            grid[name] = tuple((int if whole else float)(value) for value in values.split(','))
        except ValueError:
            raise UserError(
                f'--grid {text}: wanted numbers with commas between, such as guidance=1,3,5'
            ) from None
    cells = int(np.prod([len(values) for values in grid.values()]))
    if cells > MOST_CELLS:
        raise UserError(f'--grid has {cells} cells; wanted {MOST_CELLS} at most')
    return grid


def jobs_of_grid(
    grid: Grid,
    prompts: Sequence[str],
    seed: int,
    negative: str | None,
    sampling: SamplingConfig,
) -> tuple[list[ImageJob], list[str]]:
    """The images of a sheet, row by row, and their captions; the first field runs along a row.

    All cells of a prompt have the same random key, unless the grid has seeds.
    """
    names, jobs, captions = list(grid), [], []
    for index, prompt in enumerate(prompts):
        for rest in itertools.product(*(grid[name] for name in names[1:])):
            for first in grid[names[0]]:
                cell = dict(zip(names, (first, *rest), strict=True))
                caption = ', '.join(f'{name} {value:g}' for name, value in cell.items())
                own_seed = int(cell.pop('seed', seed))
                own: dict[str, Any] = cell
                of_cell = dataclasses.replace(sampling, **own)
                jobs.append(ImageJob(prompt, negative, own_seed, index, of_cell))
                captions.append(caption if len(prompts) == 1 else f'{caption}: {prompt}')
    return jobs, captions
