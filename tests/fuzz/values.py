"""Values that do not belong where they are put, and small changes of right ones."""

import math
import random
from collections.abc import Mapping
from typing import Any

DEEP: Any = [1]
for _ in range(40):
    DEEP = [DEEP]

# All can be written as JSON, as Python's json module reads it.
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 31, 255, 65536, 2**31, 2**32, 2**63, 10**9, 10**23,
    10**400, -(10**30), 0.0, -0.0, 0.5, 1.5, 2.0, -1.0, 1e-300, 1e12, 1e30, 1e308, math.nan,
    math.inf, -math.inf, '', ' ', 'x', '0', '1', 'nan', 'None', '\0', 'ä' * 300, 'x' * 100_000,
    '../..', '/nope/at/all', 'gs://bucket/x', [], [0], [-1], [1, 'a'], [None], [[]],
    [[1, 1], [2, 2]],
    [[1, 1], [1, 10**9]], [[2.5, 1]], [1] * 1000, {}, {'a': 1}, {'': {}}, DEEP, '\ud800', '\n',
)  # fmt: skip


def changed(rng: random.Random, value: Any) -> Any:
    """Another value for a field that has `value`: an odd one or a neighbour of it."""
    if rng.random() < 0.5:
        return rng.choice(ODD)
    return rng.choice(_neighbours(rng, value))


def _neighbours(rng: random.Random, value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value, int(value), str(value)]
    if isinstance(value, (int, float)):
        return [
            value + 1, value - 1, -value, 2 * value, value * 1000, value * 10**7, value / 3,
            float(value), str(value), [value], value * 1.0001,
        ]  # fmt: skip
    if isinstance(value, str):
        return [value + 'x', value[:-1], value.upper(), value + '\0', value * 2, [value]]
    if isinstance(value, (list, tuple)):
        items = list(value)
        position = rng.randrange(len(items) + 1)
        inner = changed(rng, items[position - 1]) if items else 1
        return [
            items[:-1], items * 2, [items], items[::-1], items + [rng.choice(ODD)],
            [*items[:position], inner, *items[position + 1 :]],
        ]  # fmt: skip
    return list(ODD)


def same(given: Any, read: Any) -> bool:
    """Whether a value was read as it was given; lists become tuples and whole numbers floats."""
    if isinstance(given, (list, tuple)):
        return (
            isinstance(read, (list, tuple))
            and len(given) == len(read)
            and all(map(same, given, read))
        )
    if isinstance(given, float) and math.isnan(given):
        return isinstance(read, float) and math.isnan(read)
    if isinstance(given, bool) or isinstance(read, bool):
        return given is read
    if isinstance(given, int) and isinstance(read, float):
        return float(given) == read  # the nearest one: 10^23 is none itself
    return given == read


def damaged(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Bytes with a damage that copying, editing or a disk does to them, and its description."""
    size = len(content)
    place = rng.randrange(size) if size else 0
    length = rng.choice((1, 2, 16, 512))
    choices = {
        f'cut at {place} of {size}': content[:place],
        'empty': b'',
        'zeros': bytes(size),
        f'byte changed at {place}': _with(content, place, bytes([rng.randrange(256)])),
        f'bit flipped at {place}': _with(
            content, place, bytes([content[place] ^ 1 << rng.randrange(8)]) if size else b''
        ),
        f'{length} random bytes at {place}': _with(content, place, rng.randbytes(length)),
        f'{length} zeros at {place}': _with(content, place, bytes(length)),
        f'{length} bytes left out at {place}': content[:place] + content[place + length :],
        f'{length} random bytes put in at {place}': (
            content[:place] + rng.randbytes(length) + content[place:]
        ),
        f'{length} bytes doubled at {place}': (
            content[: place + length] + content[place : place + length] + content[place + length :]
        ),
        'random bytes after it': content + rng.randbytes(length),
        'twice': content * 2,
        'random alone': rng.randbytes(min(size, 4096)),
    }
    return rng.choice(list(choices.items()))


def damaged_text(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Damage of a text file: that of bytes, and other encodings, marks and line ends."""
    if rng.random() < 0.6:
        return damaged(rng, content)
    text = content.decode()
    choices = {
        'byte-order mark': b'\xef\xbb\xbf' + content,
        'UTF-16': text.encode('utf-16'),
        'UTF-32': text.encode('utf-32'),
        'CRLF': content.replace(b'\n', b'\r\n'),
        'CR': content.replace(b'\n', b'\r'),
        'Latin-1': content + 'ä'.encode('latin-1'),
        'a zero byte': content + b'\0',
        'HTML': b'<!DOCTYPE html><html><body>404</body></html>',
        'a pointer of Git LFS': (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64 + b'\nsize 9\n'
        ),
        'deep': b'[' * 100_000,
        'deep object': b'{"a":' * 50_000 + b'1' + b'}' * 50_000,
        'a list': b'[' + content + b']',
        'null': b'null',
        'a number': b'1',
        'a number of many digits': b'9' * 10_000,
    }
    return rng.choice(list(choices.items()))


def _with(content: bytes, place: int, new: bytes) -> bytes:
    return (content[:place] + new + content[place + len(new) :])[: max(len(content), place)]


def paths(fields: Mapping[str, Any], prefix: str = '') -> list[str]:
    """Dotted names of all fields, groups included; without names that hold dots."""
    found = []
    for name, value in fields.items():
        if '.' in name:
            continue
        found.append(prefix + name)
        if isinstance(value, dict):
            found += paths(value, f'{prefix}{name}.')
    return found


def at(fields: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted name; None where there is none."""
    node: Any = fields
    for name in path.split('.'):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def replaced(fields: Any, path: list[str], value: Any) -> Any:
    """Nested dictionaries with another value at a path."""
    if not path:
        return value
    if not isinstance(fields, dict):
        return fields
    return {**fields, path[0]: replaced(fields.get(path[0]), path[1:], value)}


def short(value: Any) -> str:
    """The beginning of a value as Python writes it."""
    try:
        return repr(value)[:80]
    except ValueError:  # a number of more than 4,300 digits
        return 'a number of many digits'
