"""Scores images by the package image-reward or hpsv2, in a Python of its own.

Run as a file, since that Python need not have this package: it reads a JSON line {prompt, files}
per prompt from standard input, and writes a JSON line {rewards} for each; {error} ends it.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence

# A prompt and the paths of its images -> a score for each.
Scorer = Callable[[str, list[str]], Sequence[float]]


def imagereward() -> Scorer:
    """ImageReward-v1.0; it downloads its weights at the first use."""
    model = importlib.import_module('ImageReward').load('ImageReward-v1.0')

    def score(prompt: str, paths: list[str]) -> Sequence[float]:
        rewards = model.score(prompt, paths)
        return rewards if isinstance(rewards, list) else [rewards]

    return score


def hpsv2() -> Scorer:
    """HPS v2.1; it downloads its weights at the first use."""
    package = importlib.import_module('hpsv2')
    return lambda prompt, paths: package.score(paths, prompt, hps_version='v2.1')


def main(name: str) -> None:
    """Scores what is asked on standard input; what the packages print goes to standard error."""
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    try:
        score = {'imagereward': imagereward, 'hpsv2': hpsv2}[name]()
        for line in sys.stdin:
            task = json.loads(line)
            rewards = [float(x) for x in score(task['prompt'], task['files'])]
            answers.write(json.dumps({'rewards': rewards}) + '\n')
    except Exception as error:
        answers.write(json.dumps({'error': f'{type(error).__name__}: {error}'}) + '\n')


if __name__ == '__main__':
    main(sys.argv[1])
