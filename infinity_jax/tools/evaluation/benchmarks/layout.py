"""A benchmark as a list of prompts, and the files that its judge expects of each."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.text.characters import is_blank

UNSAFE = ('/', '\\', '\0')  # not allowed in a name that becomes a file
GRID_EDGE = 2  # images along each edge of a grid


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt and the files that belong to it, as paths below the folder of the benchmark.

    Attributes:
      prompt: as the benchmark has it; the judge compares the images with this text.
      files: one per image, or a single one that shows all images of the prompt as a grid.
      texts: path and content of small files next to the images.
      original: an image of the prompt on the user's disk, and the path of its copy.
    """

    prompt: str
    files: tuple[str, ...]
    texts: tuple[tuple[str, str], ...] = ()
    original: tuple[pathlib.Path, str] | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The prompts of a benchmark and its layout.

    Attributes:
      name: of the benchmark.
      items: one per prompt, in the order of the prompt file.
      num: images per prompt.
      digest: hash of the prompts, of their files and of `num`.
      texts: path and content of small files of the whole benchmark.
    """

    name: str
    items: tuple[Item, ...]
    num: int
    digest: str
    texts: tuple[tuple[str, str], ...] = ()

    @property
    def is_grid(self) -> bool:
        """Whether the images of a prompt share one file."""
        return len(self.items[0].files) < self.num


def benchmark_of(
    name: str,
    items: Sequence[Item],
    num: int,
    texts: tuple[tuple[str, str], ...] = (),
) -> Benchmark:
    """A benchmark with the hash that tells its prompts and layout from others."""
    content = [[item.prompt, item.files, [text for _, text in item.texts]] for item in items]
    return Benchmark(name, tuple(items), num, digest([num, content]), texts)


def digest(content: Any) -> str:
    """SHA-256 of plain data, as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_text(path: pathlib.Path) -> str:
    """A text file in UTF-8, with or without a byte-order mark.

    Raises:
      UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding='utf-8-sig')
    except IsADirectoryError:
        raise UserError(f'--prompts {path}: a folder; wanted a file') from None
    except OSError as error:
        raise UserError(f'--prompts {path}: {error.strerror}; name the prompt file') from None
    except UnicodeDecodeError as error:
        raise UserError(
            f'--prompts {path}: byte {error.start} is not UTF-8; save the file as UTF-8'
        ) from None


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file.

    Raises:
      UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f'--prompts {path}: not JSON in line {error.lineno} ({error.msg}); fetch it again'
        ) from None


def read_json_lines(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Each line of a file of JSON objects, as text and parsed; blank lines are left out.

    Raises:
      UserError: it cannot be read, or a line is not a JSON object.
    """
    lines = []
    for number, text in enumerate(read_text(path).split('\n'), 1):
        if not text.strip():
            continue
        try:
            parsed = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f'--prompts {path}: line {number} is not JSON ({error.msg}); wanted one JSON '
                'object per line'
            ) from None
        if not isinstance(parsed, dict):
            raise UserError(
                f'--prompts {path}: line {number} is a {type(parsed).__name__}; wanted a JSON '
                'object'
            )
        lines.append((text.strip(), parsed))
    if not lines:
        raise UserError(f'--prompts {path}: no line in it; wanted one JSON object per line')
    return lines


def prompt_of(content: Mapping[str, Any], keys: Sequence[str], place: str) -> str:
    """The prompt in the first of `keys` that `content` has.

    Raises:
      UserError: there is none, or it is not text or blank.
    """
    key = next((key for key in keys if key in content), None)
    if key is None:
        raise UserError(
            f'{place} has no {" or ".join(keys)}, but {", ".join(content) or "nothing"}'
        )
    return checked_prompt(content[key], f'{place}: {key}')


def checked_prompt(prompt: Any, place: str) -> str:
    """The prompt itself.

    Raises:
      UserError: it is not text, or blank.
    """
    if not isinstance(prompt, str):
        raise UserError(f'{place} is a {type(prompt).__name__}; wanted text')
    if is_blank(prompt) or '\0' in prompt:
        raise UserError(f'{place} is {prompt!r}; wanted text that describes an image')
    return prompt


def checked_name(name: Any, seen: set[str], place: str) -> str:
    """A name that becomes a file or folder; it is added to `seen`.

    Raises:
      UserError: it would be a path, or was seen before.
    """
    if not isinstance(name, str) or not name or name.startswith('.'):
        raise UserError(f'{place} is {name!r}; wanted the name of a file')
    if any(character in name for character in UNSAFE):
        raise UserError(f'{place} is {name!r}; it becomes a file, so it cannot hold / or \\')
    if name in seen:
        raise UserError(f'{place} is {name!r} for a second time; each becomes a file')
    seen.add(name)
    return name


def read_rewritten(path: str | os.PathLike, prompts: Sequence[str]) -> dict[str, str]:
    """Prompts as a language model has rewritten them; the layout of the released cache.

    Args:
      path: of a JSON object from prompts to rewritten prompts.
      prompts: all of the benchmark.

    Raises:
      UserError: it cannot be read, or lacks a prompt.
    """
    path = pathlib.Path(path)
    try:
        table = json.loads(path.read_text(encoding='utf-8-sig'))
    except (OSError, ValueError) as error:
        raise UserError(f'--rewritten {path}: {error}; wanted a JSON object') from None
    if not isinstance(table, dict):
        raise UserError(
            f'--rewritten {path}: a {type(table).__name__}; wanted a JSON object from prompts to '
            'rewritten prompts'
        )
    absent = [prompt for prompt in dict.fromkeys(prompts) if prompt not in table]
    if absent:
        raise UserError(
            f'--rewritten {path}: lacks {len(absent)} of {len(set(prompts))} prompts, the first: '
            f'{absent[0]!r}; add them (a prompt may map to itself)'
        )
    return {
        prompt: checked_prompt(table[prompt], f'--rewritten {path}: {prompt!r}')
        for prompt in prompts
    }
