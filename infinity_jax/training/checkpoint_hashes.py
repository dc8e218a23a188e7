"""Hashes of a checkpoint's files, so that a damaged checkpoint is found before it is used.

`hashes.json` in a checkpoint's folder maps every other file there to its hash
(`infinity_jax.weights.integrity.hash_file`). The first process writes it once the checkpoint is
complete. Hashes of files rather than of arrays cover Orbax's descriptions of the arrays too, can be
compared by any number of processes on any mesh, and need no array in memory.
"""

import json
from pathlib import Path

import jax

from infinity_jax.errors import UserError, first_line
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.runtime.host_texts import first_text, from_first_process
from infinity_jax.training.remote_run import HASHES as FILE_NAME
from infinity_jax.weights.integrity import hash_file


class Damaged(UserError):
    """A checkpoint is damaged; the message names it and a damaged file."""


def write_hashes(folder: Path) -> None:
    """Writes the hashes of a complete checkpoint; called in one process.

    Args:
      folder: of the checkpoint.

    Raises:
      OSError: a file cannot be read, or there is no room.
    """
    files = sorted(p for p in folder.rglob('*') if p.is_file() and not _is_ours(p, folder))
    hashes = {path.relative_to(folder).as_posix(): hash_file(path) for path in files}
    with atomic_file(folder / FILE_NAME) as temporary:
        temporary.write_text(json.dumps(hashes, indent=1) + '\n', encoding='utf-8')


def _is_ours(path: Path, folder: Path) -> bool:
    """Whether a file holds hashes, or those of a process that was killed while it wrote them."""
    return path.parent == folder and path.name.startswith((FILE_NAME, f'.{FILE_NAME}.'))


def check_hashes(folder: Path) -> bool:
    """Compares the files of a checkpoint with their hashes.

    All processes of a run call it. Each reads a share of the files, and all come to one result.

    Args:
      folder: of the checkpoint.

    Returns:
      whether there are hashes.

    Raises:
      Damaged: a file is missing or differs.
      UserError: a file may not be read.
    """
    texts = from_first_process(_stored_text(folder) if jax.process_index() == 0 else [])
    if not texts:
        return False
    try:
        hashes = json.loads(texts[0])
    except (ValueError, RecursionError):
        hashes = None
    if not isinstance(hashes, dict) or not hashes:  # a checkpoint has files
        raise Damaged(f'checkpoint {folder} is damaged: {FILE_NAME} is not readable')
    # Large files first, so that the shares have about the same size.
    names = sorted(hashes, key=lambda name: (-_size(folder / name), name))
    share = names[jax.process_index() :: jax.process_count()]
    try:
        found = (_damage(folder, name, hashes[name]) for name in share)
        damage = first_text(next(filter(None, found), ''))
    except PermissionError as error:
        raise UserError(f'checkpoint {folder} cannot be read: {error}') from None
    if damage:
        raise Damaged(f'checkpoint {folder} is damaged: {damage}')
    return True


def _stored_text(folder: Path) -> list[str]:
    """The content of `hashes.json`; an empty list without one."""
    try:
        return [(folder / FILE_NAME).read_text(encoding='utf-8', errors='replace')]
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


def _damage(folder: Path, name: str, wanted: str) -> str:
    try:
        return '' if hash_file(folder / name) == wanted else f'{name} differs from its hash'
    except FileNotFoundError:
        return f'{name} is missing'
    except PermissionError:
        raise
    except (OSError, ValueError) as error:  # of a failing disk, or a damaged name
        return f'{name} cannot be read ({first_line(error, 200)})'
