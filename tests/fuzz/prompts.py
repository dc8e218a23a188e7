"""Malformed prompt files, read as `infinity-jax generate --prompts-file` does."""

import os
import pathlib
import random
import unicodedata
from typing import Any

import numpy as np
from fuzz.harness import Case
from fuzz.values import damaged, damaged_text
from helpers.paths import VOCABULARY

from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.tools.commands.prompts import read_negative, read_prompts

LINES = ('a red apple', 'a sailboat on an orange background', 'two cats — and a dog', 'émile')
ODD = (
    '', ' ', '\u200b', '\ufeff', '\0', 'a\0b', '\x1b[31mred', 'a\u2028b', 'a\x85b', 'a\x0cb',
    '\u202e', '😀' * 300,
    'x' * 100_000, 'word ' * 50_000, '-- x', '"quoted"', '# a comment', '{"prompt": "x"}', '\\n',
    '\t', '一只红苹果',
    'a' + '\u0301' * 1000, '\u3000', '\xad', '\U000e0041', '<unk>', '</s>', '<pad>', '</s> a cat',
    '\x7f',
)  # fmt: skip
BLANK = ('Cc', 'Cf', 'Zs', 'Zl', 'Zp')


class PromptFuzzer:
    """Cases of prompt files and of prompts on the command line."""

    def __init__(self, folder: pathlib.Path):
        self.tokenizer = TextTokenizer.from_folder(VOCABULARY)

    def case(self, rng: random.Random, folder: pathlib.Path) -> Case:
        lines = [rng.choice(LINES) for _ in range(rng.randrange(1, 6))]
        kind = rng.choice(('line', 'line', 'bytes', 'given', 'file'))
        file, given = folder / 'prompts.txt', []
        name, content, wanted = kind, '\n'.join(lines).encode(), None
        if kind in ('line', 'given'):
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(ODD))
            name = f'{kind} {ascii(max(lines, key=lines.__contains__))[:20]} {ascii(lines)[:60]}'
            end = rng.choice(('\n', '\r\n', '\r', '\n\n'))
            content, wanted = end.join(lines).encode(), lines
            if kind == 'given':
                given, content = lines, None
        elif kind == 'bytes':
            name, content = rng.choice((damaged, damaged_text))(rng, content)
        if content is not None:
            file.write_bytes(content)
        if kind == 'file':
            name = rng.choice(('folder', 'missing', 'loop', 'unreadable name'))
            file.unlink()
            if name == 'folder':
                file.mkdir()
            elif name == 'loop':
                file.symlink_to(file)
            elif name == 'unreadable name':
                file = pathlib.Path(os.fsdecode(os.fsencode(folder) + b'/\xff.txt'))
        path = None if kind == 'given' else str(file)
        return Case(name, lambda: self._read(given, path), lambda read: _judge(wanted, read))

    def _read(self, given: list[str], path: str | None) -> tuple[list[str], np.ndarray]:
        prompts = read_prompts(given, path)
        for prompt in prompts[:3]:
            read_negative(prompt)
        self.tokenizer.unknown_characters(prompts, 64)
        self.tokenizer.token_counts(prompts, 64)
        return prompts, self.tokenizer(prompts, 64, 64)[1]


def _judge(wanted: list[str] | None, read: tuple[list[str], Any]) -> str:
    prompts, lengths = read
    if not all(2 <= length <= 64 for length in lengths):
        return f'a prompt has {min(lengths)} tokens'
    for prompt in prompts:
        if '\0' in prompt or all(unicodedata.category(c) in BLANK for c in prompt):
            return f'{ascii(prompt)[:60]} is a prompt'
    if wanted is None:
        return ''
    marked = [line.removeprefix('\ufeff') for line in wanted]
    shown = [line for line in marked if any(unicodedata.category(c) not in BLANK for c in line)]
    return '' if prompts == shown else f'{len(shown)} lines became {len(prompts)} prompts'
