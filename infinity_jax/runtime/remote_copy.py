"""Copies between object stores and this machine.

What is read whole, such as a model folder, is copied into the user's cache and read there; files
that have not changed are not copied again. What a command writes is written to a temporary folder
first, and copied to the store when it is complete.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from infinity_jax.errors import UserError, first_line
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.runtime.remote import check_scheme, file_system, is_remote, store_errors, version

STATE = '.remote.json'  # in a copied folder: name -> [size, version] of each file
LAST = ('config.json', 'hashes.json')  # copied to a store after the files that they describe


def cache_folder(kind: str, url: str) -> pathlib.Path:
    """The folder of this machine for the content of a path of a store.

    Args:
      kind: name of the group of such folders.
      url: the path; its readable form is the folder's name.
    """
    name = url.replace('://', '_').strip('/').replace('/', '_')
    # Here: it imports jax, which commands that copy nothing do without.
    from infinity_jax.runtime.compile_cache import user_cache_folder

    try:
        base = user_cache_folder()
    except FileNotFoundError:  # no home
        base = pathlib.Path(tempfile.gettempdir()) / 'infinity_jax'
    return base / kind / f'{name[-80:]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}'


def remote_files(url: str) -> dict[str, dict[str, Any]]:
    """Name below a folder of a store -> description of the file; the file itself has the name ''.

    Raises:
      UserError: the store cannot be read.
    """
    system = file_system(url)
    root = system._strip_protocol(url).rstrip('/')
    try:
        with store_errors(url):
            system.invalidate_cache()  # other programs write there too
            found = system.find(root, detail=True)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise unreadable(url, error) from None
    names = {path[len(root) :].strip('/'): info for path, info in found.items()}
    for name in names:
        if '..' in name.split('/'):
            raise UserError(f'{url}: holds a file called {name!r}; wanted names without ..')
    return {name: info for name, info in names.items() if not info['name'].endswith('/')}


def unreadable(url: str, error: OSError) -> UserError:
    """The error of a store that cannot be read."""
    return UserError(
        f'{url}: cannot be read ({error.strerror or first_line(error)}); check the name, your '
        'credentials and the network'
    )


def local_copy(
    path: str | os.PathLike, chosen: Callable[[str], bool] = lambda name: True
) -> pathlib.Path:
    """A file or folder on this machine; one of a store is copied into the user's cache first.

    Args:
      path: of this machine, which is returned unchanged, or of a store.
      chosen: which files of a folder are copied.

    Raises:
      UserError: there is no such file or folder, or it cannot be copied.
    """
    if not is_remote(path):
        return pathlib.Path(path)
    check_scheme(path)
    url = os.fspath(path).rstrip('/')
    files = remote_files(url)
    if files and not any(map(chosen, files)):
        raise UserError(
            f'{url}: no model, but {", ".join(sorted(files)[:3])}; name the folder of a model'
        )
    if not files:
        raise UserError(f'{url}: no such file or folder; check the name and your credentials')
    folder = cache_folder('copies', url)
    target = folder / url.rpartition('/')[2]
    try:
        _update(url, target, files, chosen)
    except OSError as error:
        raise UserError(
            f'{url}: cannot be copied to {folder}: {error.strerror or first_line(error)}; free '
            'space, set XDG_CACHE_HOME to another place, or check your credentials'
        ) from None
    return target


def _update(
    url: str,
    target: pathlib.Path,
    files: dict[str, dict[str, Any]],
    chosen: Callable[[str], bool],
) -> None:
    """Copies the chosen files of a store that differ, and deletes those that are gone there."""
    state_file = target.parent / STATE
    wanted = {name: [info.get('size'), version(info)] for name, info in files.items()}
    try:
        state = json.loads(state_file.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        state = {}
    if ('' in wanted) != target.is_file():  # a file where a folder was, or the reverse
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
    for old in list(target.rglob('*')) if target.is_dir() else []:
        if old.is_file() and old.relative_to(target).as_posix() not in wanted:
            old.unlink()
    kept = {name: state[name] for name in wanted if name in state}
    for name in filter(chosen, wanted):
        place = target / name if name else target
        if state.get(name) != wanted[name] or not place.is_file():
            copy_from(f'{url}/{name}' if name else url, place)
        kept[name] = wanted[name]
    with atomic_file(state_file) as temporary:
        temporary.write_text(json.dumps(kept), encoding='utf-8')


def copy_from(url: str, place: pathlib.Path) -> None:
    """Copies one file out of a store; raises `OSError`."""
    with atomic_file(place) as temporary, store_errors(url):
        file_system(url).get_file(url, str(temporary))


def copy_to(url: str, folder: pathlib.Path, names: Iterable[str]) -> None:
    """Copies files of a folder into a folder of a store, those that describe others last.

    Args:
      url: the folder of the store.
      folder: of this machine.
      names: of the files, below `folder`.

    Raises:
      OSError: the store cannot be written.
    """
    system = file_system(url)
    for name in sorted(names, key=lambda name: (name.rpartition('/')[2] in LAST, name)):
        with store_errors(f'{url}/{name}'):
            system.put_file(str(folder / name), f'{url}/{name}')


def delete_from(url: str, names: Iterable[str]) -> None:
    """Deletes files of a folder of a store, of a description before what it describes."""
    system = file_system(url)
    for name in sorted(names, key=lambda name: (name.rpartition('/')[2] not in LAST, name)):
        with store_errors(f'{url}/{name}'):
            system.rm_file(f'{url}/{name}')


def file_names(folder: pathlib.Path) -> list[str]:
    """The names of all files below a folder of this machine."""
    return [p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()]


def check_store(folder: str | os.PathLike) -> None:
    """Writes an empty file into a folder of a store and deletes it.

    Raises:
      UserError: the store cannot be written.
    """
    trial = f'{os.fspath(folder)}/.infinity_jax'
    try:
        with store_errors(trial):
            file_system(trial).pipe_file(trial, b'')
            file_system(trial).rm_file(trial)
    except OSError as error:
        raise unwritable(os.fspath(folder), error) from None


def unwritable(url: str, error: OSError) -> UserError:
    """The error of a store that cannot be written."""
    return UserError(
        f'{url}: cannot be written ({error.strerror or first_line(error)}); check the name, your '
        'credentials and the network'
    )


@contextlib.contextmanager
def local_output(
    path: str | os.PathLike, replaced: Callable[[str], bool] | None = None
) -> Iterator[pathlib.Path]:
    """A path to write a file or folder to; one of a store is copied there when the block ends.

    After an error nothing is copied. A file of the store that has the name of a new one is
    replaced; others stay.

    Args:
      path: of this machine, which is used as it is, or of a store.
      replaced: which files of a store's folder are deleted where they have no successor.

    Raises:
      UserError: the store cannot be written.
    """
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    url = os.fspath(path).rstrip('/')
    file_system(url)  # before the work begins: is the package there?
    parent, _, name = url.rpartition('/')
    with tempfile.TemporaryDirectory(prefix='infinity_jax_') as folder:
        yield pathlib.Path(folder) / name
        names = file_names(pathlib.Path(folder))
        try:
            copy_to(parent, pathlib.Path(folder), names)
            if replaced is not None:
                old = (n for n in remote_files(url) if n and f'{name}/{n}' not in names)
                delete_from(url, list(filter(replaced, old)))
        except OSError as error:
            raise unwritable(url, error) from None
