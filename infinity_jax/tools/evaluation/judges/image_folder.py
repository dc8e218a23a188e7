"""Images of a benchmark folder with their prompts, and the files that judges write next to them."""

import json
import pathlib
from typing import Any

import numpy as np

from infinity_jax.data.decode import decode, upright_size
from infinity_jax.data.records import BrokenRecord, open_file
from infinity_jax.errors import UserError, in_one_line
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.tools.evaluation.benchmarks.layout import Benchmark
from infinity_jax.tools.evaluation.benchmarks.readers import READERS
from infinity_jax.tools.evaluation.benchmarks.settings import read_run


def read_benchmark(out: pathlib.Path) -> Benchmark:
    """The prompts and files of a folder that `infinity-jax evaluate` generated.

    Raises:
      UserError: it is no such folder, or its prompt file is gone or has changed.
    """
    run = read_run(out)
    name = run.get('benchmark')
    if name not in READERS:
        raise UserError(f'{out}: run.json is of benchmark {name!r}; wanted {", ".join(READERS)}')
    try:
        prompts, num = run['prompts'], run['images_per_prompt']
        path, digest = pathlib.Path(prompts['file']), prompts['sha256']
    except (KeyError, TypeError) as error:
        raise UserError(
            f'{out}: run.json lacks {in_one_line(error)}; wanted a folder that evaluate generated'
        ) from None
    benchmark = READERS[name](path, num, out)
    if benchmark.digest != digest:
        raise UserError(f'{path}: not the prompts of {out}; restore the file')
    return benchmark


def check_complete(out: pathlib.Path, benchmark: Benchmark) -> None:
    """Raises a UserError if an image of the benchmark is absent."""
    files = [file for item in benchmark.items for file in item.files]
    absent = [file for file in files if not (out / file).exists()]
    if absent:
        raise UserError(
            f'{out / absent[0]}: absent, as are {len(absent)} of {len(files)} images in all; run '
            f'evaluate {benchmark.name} again to generate them'
        )


def read_pixels(path: pathlib.Path) -> np.ndarray:
    """An image at its own size, uint8 (Y, X, 3).

    Raises:
      UserError: it cannot be read.
    """
    try:
        return decode(open_file(path), upright_size(open_file(path)))
    except (OSError, BrokenRecord) as error:
        raise UserError(f'{path}: not a readable image ({error}); repair or remove it') from None


def write_scores(path: pathlib.Path, content: Any) -> pathlib.Path:
    """Writes the scores of a judge as JSON; returns the path.

    Raises:
      UserError: it cannot be written.
    """
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror})') from None
    return path
