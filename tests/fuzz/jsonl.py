"""Malformed lines of JSON and images, read as training reads them."""

import functools
import json
import os
import pathlib
import random
from typing import Any

from fuzz.harness import Case
from fuzz.sources import Read, has_reports, read_source
from fuzz.values import ODD, changed, damaged, damaged_text, short
from helpers.data_folders import encoded, line

IMAGES = {
    'a.jpg': ('JPEG', {}), 'b.png': ('PNG', {}), 'c.webp': ('WEBP', {}), 'd.gif': ('GIF', {}),
    'e.tif': ('TIFF', {}), 'f.bmp': ('BMP', {}), 'g.jpg': ('JPEG', {'progressive': True}),
}  # fmt: skip
NAME = 'list.jsonl'
TEXTS = (
    'a\0b', '\u200b', '\u202e\u200b', '\ufeff', '\ud800', '', ' \t', '--', '-- a', 'a -- b',
    '😀' * 50,
    'a' + '\u0301' * 5000, 'word ' * 400_000, 'x' * 2_000_000, ['a', 'b'], [], 5, None, True,
    {'a': 1},
    '\r', 'a\u2028b', '. . . . ! ?', 'A b. C d. E f. G h.',
)  # fmt: skip
PATHS = (
    '', '.', '..', '/', '/dev/null', '/dev/zero', '/dev/stdin', 'pipe', 'loop', 'a.jpg/',
    './a.jpg', 'folder',
    'x' * 300, 'x' * 5000, 'a\0.jpg', '\ud800.jpg', 'nope.jpg', None, 5, ['a.jpg'], {},
    'file:///a.jpg',
    'http://127.0.0.1/a.jpg', 'gs://x/a.jpg', '~/a.jpg', 'A.JPG', 'a.jpg ', '/proc/self/mem',
    'list.jsonl',
)  # fmt: skip


class JsonlFuzzer:
    """Cases of a data source of kind jsonl: one line, one image or the list is malformed."""

    def __init__(self, folder: pathlib.Path):
        self.images = {
            name: encoded(24, 24, number, kind, **options)
            for number, (name, (kind, options)) in enumerate(IMAGES.items())
        }
        self.lines = [line(name, text=f'image {name}') for name in self.images]
        self.good = self._read(self._write(folder, self.lines), folder / 'index')

    def case(self, rng: random.Random, folder: pathlib.Path) -> Case:
        return rng.choice((self._line, self._line, self._fields, self._image, self._list))(
            rng, folder
        )

    def _line(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """A line with another text, path or value."""
        number = rng.randrange(len(self.lines))
        fields: dict[str, Any] = json.loads(self.lines[number])
        field = rng.choice(('text', 'text', 'image_path', 'image_path', *fields))
        odd = {'text': TEXTS, 'long_caption': TEXTS, 'image_path': PATHS}.get(field)
        fields[field] = rng.choice(odd) if odd else changed(rng, fields[field])
        if field == 'long_caption' or rng.random() < 0.1:
            fields['long_caption_type'] = rng.choice(('x', None, [], 'user_prompt'))
        name = f'{field} {short(fields[field])}'
        return self._with(folder, number, json.dumps(fields).encode(), name)

    def _fields(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """A line that is no object, or one with fields left out, doubled or nested."""
        number = rng.randrange(len(self.lines))
        text = self.lines[number]
        fields = json.loads(text)
        fields.pop(rng.choice(list(fields)))
        damage, content = damaged_text(rng, text.encode())
        content, damage = rng.choice(
            (
                (content, damage), (content, damage), (json.dumps(fields).encode(), 'a field less'),
                (f'{text[:-1]}, "text": "b"}}'.encode(), 'a field twice'),
                (json.dumps(rng.choice(ODD)).encode(), 'no object'),
                (f'{text[:-1]}, "x": 1e999999, "y": {"[" * 500 + "]" * 500}}}'.encode(), 'extras'),
                (text.replace('"', "'").encode(), 'quotes'),
                (b'  ' + text.encode() + b'\t', 'blanks'),
                (f'{text[:-1]}, "image_path": "b.png"}}'.encode(), 'a path twice'),
            )
        )  # fmt: skip
        return self._with(folder, number, content, damage)

    def _image(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """A damaged image, or none."""
        name = rng.choice(list(self.images))
        damage, content = damaged(rng, self.images[name])
        number = list(self.images).index(name)
        self._write(folder, self.lines)
        (folder / name).write_bytes(content)
        if rng.random() < 0.1:
            (folder / name).unlink()
            damage = rng.choice(('pipe', 'folder', 'loop', 'device'))
            make = {
                'pipe': os.mkfifo, 'folder': os.mkdir, 'loop': lambda p: os.symlink(p, p),
                'device': lambda p: os.symlink('/dev/zero', p),
            }  # fmt: skip
            make[damage](folder / name)
        return self._case(folder, f'{name}: {damage}', number, None)

    def _list(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """A damaged list."""
        self._write(folder, self.lines)
        damage, content = damaged_text(rng, (folder / NAME).read_bytes())
        (folder / NAME).write_bytes(content)
        return self._case(folder, f'list: {damage}', None, content)

    def _with(self, folder: pathlib.Path, number: int, content: bytes, name: str) -> Case:
        self._write(folder, self.lines)
        os.mkfifo(folder / 'pipe')
        os.symlink('loop', folder / 'loop')
        (folder / 'folder').mkdir()
        lines = [each.encode() for each in self.lines]
        lines[number] = content
        whole = b'\n'.join(lines) + b'\n'
        (folder / NAME).write_bytes(whole)
        return self._case(folder, name, number, whole)

    def _write(self, folder: pathlib.Path, lines: list[str]) -> pathlib.Path:
        for name, content in self.images.items():
            (folder / name).write_bytes(content)
        (folder / NAME).write_text('\n'.join(lines) + '\n')
        return folder

    def _read(self, folder: pathlib.Path, index: pathlib.Path) -> Read:
        return read_source('jsonl', folder, index)

    def _case(
        self, folder: pathlib.Path, name: str, number: int | None, content: bytes | None
    ) -> Case:
        run = functools.partial(self._read, folder, folder / 'index')
        return Case(name, run, functools.partial(self._judge, number, content), has_reports)

    def _judge(self, number: int | None, content: bytes | None, read: Read) -> str:
        """Judges whether all other records are as before, and that no line is lost."""
        expected = [json.loads(each) for each in self.lines]
        if content is None:
            others = {k: v for k, v in self.good.records.items() if k != _name(number)}
            lost = [k for k, v in others.items() if read.records.get(k) != v]
            return f'{lost[0]} is another record' if lost else ''
        lines = content.split(b'\n')
        filled = [n for n, each in enumerate(lines) if each.strip()]
        if read.count != len(filled):
            return f'{len(filled)} lines became {read.count} records'
        for n, each in enumerate(lines):
            record = read.records.get(_name(n))
            if record is None:
                continue
            try:
                fields = json.loads(each)
            except (ValueError, RecursionError):
                return f'line {n + 1} is no JSON, and is a record'
            if n < len(expected) and fields == expected[n]:
                if record != self.good.records[_name(n)]:
                    return f'line {n + 1} is another record'
            shorts = fields.get('text')
            shorts = shorts if isinstance(shorts, list) else [shorts]
            texts = [_letters(text) for text in (*shorts, fields.get('long_caption'))]
            for caption in record.captions:
                if not any(text.startswith(_letters(caption)) for text in texts):
                    return f'line {n + 1} has the caption {caption!r:.80}'
        return ''


def _name(number: int | None) -> str:
    return f'{NAME} line {-1 if number is None else number + 1}'


def _letters(text: Any) -> str:
    """A text that captions may be the beginning of, without its spaces."""
    return ''.join(text.split()) if isinstance(text, str) else ''
