"""Scores of ImageReward and HPSv2 by their own packages, one per image, as files of the report.

The packages and their weights are the user's: neither is a dependency, and both need torch.
"""

import importlib
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.tools.evaluation.benchmarks.layout import Benchmark
from infinity_jax.tools.evaluation.benchmarks.readers import READERS
from infinity_jax.tools.evaluation.benchmarks.settings import read_run

# A prompt and the paths of its images -> a score for each.
Scorer = Callable[[str, list[str]], Sequence[float]]
FILES = {'imagereward': 'imagereward_scores.json', 'hpsv2': 'hpsv2_scores.json'}


def score_folder(out: pathlib.Path) -> pathlib.Path:
    """Scores all images of a benchmark folder; returns the file of the scores.

    Raises:
      UserError: the folder is of another benchmark, its prompts or images are gone, or the package
        is not installed.
    """
    run = read_run(out)
    name = run.get('benchmark')
    if name not in FILES:
        raise UserError(f'{out}: of benchmark {name!r}; scored here are {", ".join(FILES)}')
    benchmark = _benchmark_of(out, name, run)
    scorer = {'imagereward': imagereward, 'hpsv2': hpsv2}[name]()
    entries = []
    for item in tqdm(benchmark.items, name, unit=' prompts', disable=None):
        paths = [out / file for file in item.files]
        absent = next((path for path in paths if not path.exists()), None)
        if absent is not None:
            raise UserError(f'{absent}: absent; run evaluate {name} again to generate it')
        rewards = [float(x) for x in scorer(item.prompt, [str(path) for path in paths])]
        if len(rewards) != len(paths) or not all(map(math.isfinite, rewards)):
            raise UserError(f'{paths[0]}: scored {rewards}; wanted a number for each image')
        entries.append({'prompt': item.prompt, 'files': list(item.files), 'rewards': rewards})
    with atomic_file(out / FILES[name]) as temporary:
        temporary.write_text(json.dumps(entries, indent=1) + '\n', encoding='utf-8')
    return out / FILES[name]


def _benchmark_of(out: pathlib.Path, name: str, run: dict[str, Any]) -> Benchmark:
    """The prompts that the images were generated from.

    Raises:
      UserError: their file is gone, or has changed.
    """
    path = pathlib.Path(str(run['prompts']['file']))
    benchmark = READERS[name](path, run['images_per_prompt'], out)
    if benchmark.digest != run['prompts']['sha256']:
        raise UserError(f'{path}: not the prompts of {out}; restore the file')
    return benchmark


def imagereward() -> Scorer:
    """ImageReward-v1.0 of the package image-reward; it downloads its weights at the first use."""
    model = _package('ImageReward', 'image-reward').load('ImageReward-v1.0')

    def score(prompt: str, paths: list[str]) -> Sequence[float]:
        rewards = model.score(prompt, paths)
        return rewards if isinstance(rewards, list) else [rewards]

    return score


def hpsv2() -> Scorer:
    """HPS v2.1 of the package hpsv2; it downloads its weights at the first use."""
    package = _package('hpsv2', 'hpsv2')
    return lambda prompt, paths: [
        float(x) for x in package.score(paths, prompt, hps_version='v2.1')
    ]


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'the package {name} cannot be imported ({in_one_line(error, 100)}): pip install {name}'
        ) from None
