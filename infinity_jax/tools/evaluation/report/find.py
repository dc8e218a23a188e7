"""Finds the files of judges in a folder and reads them."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.tools.evaluation.report.own_judges import read_clip, read_fid, read_text
from infinity_jax.tools.evaluation.report.results import (
    DPG_SCORE,
    HPS_LINE,
    Results,
    is_prompt_file,
    read_dpg,
    read_file,
    read_geneval,
    read_hpsv2,
    read_hpsv2_scores,
    read_imagereward,
)

IMAGEREWARD_FILE = 'image_reward_res.json'  # of the released script
# Files that `infinity-jax evaluate` itself writes, and the command.
OWN: dict[str, tuple[Callable[[pathlib.Path, Any], Results], str]] = {
    'clip_scores.json': (read_clip, 'clip'),
    'fid_scores.json': (read_fid, 'fid'),
    'hpsv2_scores.json': (read_hpsv2_scores, 'score'),
    'imagereward_scores.json': (read_imagereward, 'score'),
    'text_scores.json': (read_text, 'text'),
}


def find_results(folder: pathlib.Path) -> tuple[list[Results], list[str]]:
    """The results in a folder, and a line about each file that cannot be read.

    Raises:
      UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; wanted one with the results of a judge')
    results, problems = [], []
    for path in sorted([*folder.iterdir(), *folder.glob('images/*')]):
        try:
            found = read_results(path)
        except UserError as error:
            problems.append(str(error))
            continue
        if found is not None:
            results.append(found)
    return results, problems


def read_results(path: pathlib.Path) -> Results | None:
    """The results in a file; None if it is something else.

    Raises:
      UserError: it cannot be read.
    """
    if path.name.startswith('.') or path.name in ('metadata.jsonl', 'run.json', 'report.json'):
        return None
    if path.suffix == '.jsonl':
        return None if is_prompt_file(path) else read_geneval(path)
    if path.suffix == '.json':
        try:
            content = json.loads(read_file(path))
        except json.JSONDecodeError:
            raise UserError(f'{path}: cut off, or not JSON; run the judge again') from None
        if path.name in OWN:
            return _read_own(path, content)
        if isinstance(content, dict) and 'average_image_reward' in content:
            return read_imagereward(path, content)
        if isinstance(content, list) and any(
            isinstance(entry, dict) and 'rewards' in entry for entry in content
        ):
            return read_imagereward(path, content)
        if path.name == IMAGEREWARD_FILE:
            raise UserError(f'{path}: has no average_image_reward; run the judge again')
        return None
    if path.suffix not in ('.txt', '.log') or path.stem in ('report', 'metadata'):
        return None
    if path.name.endswith('_detail.txt'):
        return None
    text = read_file(path)
    if HPS_LINE.search(text):
        return read_hpsv2(path, text)
    if 'hps' in path.name.lower():
        raise UserError(f'{path}: has no line of a style and its score; run the judge again')
    if DPG_SCORE.search(text) or ('dpg' in path.name.lower() and 'result' in path.name.lower()):
        return read_dpg(path, text)
    return None


def _read_own(path: pathlib.Path, content: Any) -> Results:
    read, command = OWN[path.name]
    try:
        return read(path, content)
    except UserError:  # it is a ValueError as well
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f'{type(error).__name__}: {in_one_line(error, 100)}'
        raise UserError(
            f'{path}: not as evaluate {command} writes it ({reason}); run evaluate {command} again'
        ) from None
