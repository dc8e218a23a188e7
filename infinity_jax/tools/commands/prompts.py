"""Reads prompts from the command line and from files, as a person would read them."""

import pathlib
import re
from collections.abc import Sequence

from infinity_jax.errors import UserError
from infinity_jax.text.characters import is_blank

_LINE_END = re.compile(r'\r\n|\n|\r')  # str.splitlines also splits at others, such as U+2028
_MARK = '\ufeff'  # byte-order mark, which some editors write at the start of a file
_UTF16 = (b'\xff\xfe', b'\xfe\xff')


def read_prompts(given: Sequence[str], file: str | None = None) -> list[str]:
    """Prompts of the command line, then those of a file.

    Args:
      given: prompts of the command line.
      file: path of a text file in UTF-8, one prompt per line; blank lines are left out.

    Raises:
      UserError: there is no prompt, one is blank or not UTF-8, or the file cannot be read.
    """
    for number, prompt in enumerate(given, 1):
        _check(prompt, f'prompt {number} of {len(given)}')
        if is_blank(prompt):
            raise UserError(
                f'a prompt is empty: number {number} of {len(given)}; write what the image should '
                'show'
            )
    prompts = [*given, *(line for _, line in (numbered_lines(file) if file else []))]
    if not prompts:
        raise UserError('no prompt given; write what the image should show, or --prompts-file')
    return prompts


def read_negative(given: str | None) -> str | None:
    """The negative prompt; a blank one is none.

    Raises:
      UserError: it is not UTF-8.
    """
    if given is not None:
        _check(given, '--negative')
    return None if given is None or is_blank(given) else given


def _check(prompt: str, name: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError:  # a byte that the terminal or a file name has in another encoding
        raise UserError(
            f'{name} is not UTF-8: {ascii(prompt)[:80]}; set the terminal to UTF-8'
        ) from None
    if '\0' in prompt:
        raise UserError(f'{name} holds a zero byte: {ascii(prompt)[:80]}; remove it')


def numbered_lines(file: str) -> list[tuple[int, str]]:
    """The lines of a text file in UTF-8 that are not blank, with their numbers from 1.

    Raises:
      UserError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        content = pathlib.Path(file).read_bytes()
        if content.startswith(_UTF16):
            raise UserError(f'--prompts-file {file}: the file is UTF-16; save it as UTF-8')
        lines = _LINE_END.split(content.decode())
    except OSError as error:
        raise UserError(f'--prompts-file {file}: {error}') from None
    except UnicodeDecodeError as error:
        number = len(_LINE_END.split(content[: error.start].decode()))
        raise UserError(
            f'--prompts-file {file}: line {number} is not UTF-8 (byte '
            f'0x{content[error.start]:02x}); save the file as UTF-8'
        ) from None
    lines = [line.removeprefix(_MARK) for line in lines]
    for number, line in enumerate(lines, 1):
        _check(line, f'--prompts-file {file}: line {number}')
    return [(number, line) for number, line in enumerate(lines, 1) if not is_blank(line)]
