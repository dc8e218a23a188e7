"""Scores of ImageReward and HPSv2 by their own packages, one per image, as files of the report.

The packages and their weights are the user's. Both want older versions of packages that this one
needs, such as transformers before 5; therefore they run in a Python that the user names.
"""

import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.tools.evaluation.benchmarks.settings import read_run
from infinity_jax.tools.evaluation.judges.image_folder import (
    check_complete,
    read_benchmark,
    write_scores,
)

WORKER = pathlib.Path(__file__).with_name('reward_worker.py')
FILES = {'imagereward': 'imagereward_scores.json', 'hpsv2': 'hpsv2_scores.json'}
PACKAGES = {'imagereward': 'image-reward', 'hpsv2': 'hpsv2'}


def score_folder(out: pathlib.Path, python: str = sys.executable) -> pathlib.Path:
    """Scores all images of a benchmark folder; returns the file of the scores.

    Args:
      out: folder of `evaluate imagereward` or `evaluate hpsv2`.
      python: an interpreter that has the package.

    Raises:
      UserError: the folder is of another benchmark, its prompts or images are gone, or the package
        is not installed.
    """
    name = read_run(out).get('benchmark')
    if name not in FILES:
        raise UserError(f'{out}: of benchmark {name!r}; scored here are {", ".join(FILES)}')
    benchmark = read_benchmark(out)
    check_complete(out, benchmark)
    entries = []
    with _start(python, name) as worker:
        for item in tqdm(benchmark.items, name, unit=' prompts', disable=None):
            paths = [str((out / file).absolute()) for file in item.files]
            try:
                rewards = _ask(worker, item.prompt, paths)
            except _Failed as error:
                raise UserError(
                    f'--python {python}: {PACKAGES[name]}: {error}; install the package in an '
                    f'environment of its own (pip install {PACKAGES[name]}) and name its python'
                ) from None
            if len(rewards) != len(paths) or not all(map(math.isfinite, rewards)):
                raise UserError(f'{paths[0]}: scored {rewards}; wanted a number for each image')
            entries.append({'prompt': item.prompt, 'files': list(item.files), 'rewards': rewards})
    return write_scores(out / FILES[name], entries)


class _Failed(Exception):
    """The worker cannot score."""


def _start(python: str, name: str) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [python, str(WORKER), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # nothing is left to be flushed into the pipe of a worker that has ended
        )
    except OSError as error:
        raise UserError(f'--python {python}: {error.strerror}; name an interpreter') from None


def _ask(worker: subprocess.Popen[bytes], prompt: str, paths: Sequence[str]) -> list[float]:
    """The scores of the images of one prompt.

    Raises:
      _Failed: with what the worker says.
    """
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(json.dumps({'prompt': prompt, 'files': list(paths)}).encode() + b'\n')
    except BrokenPipeError:
        pass  # it has ended; its answer says why
    line = worker.stdout.readline()
    if not line:
        raise _Failed('it ended without an answer')
    answer: Any = json.loads(line)
    if 'error' in answer:
        raise _Failed(in_one_line(answer['error'], 300))
    return answer['rewards']
