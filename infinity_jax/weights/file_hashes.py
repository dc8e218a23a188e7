"""Hashes of the small files of a model folder, stored in its config.json.

A changed vocabulary would turn prompts into other tokens without any error.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infinity_jax.text.tokenizer import TOKENIZER_FILES
from infinity_jax.weights.integrity import DIGITS

ENTRY = 'files'  # of config.json: path -> hash
FILES = tuple(f'text_encoder/{name}' for name in ('config.json', *TOKENIZER_FILES))


def file_hashes(folder: Path) -> dict[str, str]:
    """Path -> hash of those of `FILES` that the folder has."""
    return {name: _hash(folder / name) for name in FILES if (folder / name).is_file()}


def file_problems(folder: Path, described: Mapping[str, Any]) -> list[str]:
    """One sentence per file that is missing or differs from its hash; older folders have none."""
    stored = described.get(ENTRY, {})
    if not isinstance(stored, dict):
        return [f'{folder}/config.json: {ENTRY} is {stored!r:.60}; wanted path -> hash']
    problems = []
    for name in (name for name in FILES if name in stored):
        found = _hash(folder / name) if (folder / name).is_file() else 'no file'
        if found != stored[name]:
            problems.append(
                f'{folder}/{name} is damaged: it has the hash {found}, and was saved with '
                f'{stored[name]!s:.40}; copy it again, or remove its entry under {ENTRY!r} in '
                'config.json if you changed it yourself'
            )
    return problems


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]
