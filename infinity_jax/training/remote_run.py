"""A run whose folder is in an object store, such as s3://bucket/run.

The run works in a folder of this machine, whose content is copied to the store with every
checkpoint. At its start the store's content, the only one that counts, is copied to this machine.
A checkpoint in the store is complete once its hashes are there, which are copied last.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Collection, Iterator
from typing import Any

import jax

from infinity_jax.errors import UserError, first_line
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.runtime.preemption import finishing
from infinity_jax.runtime.remote import check_scheme, is_remote
from infinity_jax.runtime.remote_copy import (
    cache_folder,
    copy_from,
    copy_to,
    delete_from,
    file_names,
    local_copy,
    remote_files,
    unwritable,
)
from infinity_jax.runtime.remote_lock import FolderLock

CHECKPOINTS = 'checkpoints'  # in a run folder; holds one folder per step
HASHES = 'hashes.json'  # in a checkpoint
MODEL = 'model/'  # of files in a run folder: of the finished model
# In the folder of this machine: {'url', 'sent': name -> [size, time] of what the store has}.
MARK = '.store.json'
_STEP = re.compile(rf'{CHECKPOINTS}/([0-9]+)/(.+)')


class RemoteRun:
    """The copies between a run's folder on this machine and the one of a store.

    Attributes:
      url: the folder of the store.
      folder: the one of this machine.
    """

    def __init__(self, url: str, folder: pathlib.Path):
        self.url, self.folder = url, folder

    @classmethod
    def of(cls, folder: str | os.PathLike) -> 'RemoteRun | None':
        """The copies of a run folder of this machine; None if no store has it."""
        mark = _read_mark(pathlib.Path(folder))
        return None if mark is None else cls(mark['url'], pathlib.Path(folder))

    def fetch(self) -> None:
        """Makes the folder of this machine equal to the store's; deletes unfinished checkpoints.

        A folder with a whole checkpoint or an exported model that the store lacks, because the
        last copy failed, is set aside, and named in a line.

        Raises:
          UserError: one of the two cannot be read or written.
        """
        files = remote_files(self.url)
        whole = {m[1] for m in map(_STEP.fullmatch, files) if m and m[2] == HASHES}
        steps = {name: m[1] for name in files if (m := _STEP.fullmatch(name))}
        try:
            if unsent := self._unsent(files):
                aside = self.folder.with_name(f'{self.folder.name}.unsent')
                shutil.rmtree(aside, ignore_errors=True)
                self.folder.rename(aside)
                print(
                    f'{self.url}: {unsent} was not copied to the store; it is kept in {aside} '
                    'until this happens again'
                )
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            delete_from(self.url, [name for name, step in steps.items() if step not in whole])
            for name in files:
                if steps.get(name) in (None, *whole) and not name.startswith('.'):
                    copy_from(f'{self.url}/{name}', self.folder / name)
        except OSError as error:
            raise UserError(
                f'config.run_dir {self.url}: cannot be copied to {self.folder}: '
                f'{error.strerror or first_line(error)}; free space, set XDG_CACHE_HOME to another '
                'place, or check your credentials'
            ) from None
        self._write_mark(self._states())  # last: what an interrupted fetch leaves is no run's own

    def _unsent(self, files: Collection[str]) -> str:
        """What the folder of this machine has and the store lacks: 'checkpoint N', 'model' or ''.

        Args:
          files: names in the store.
        """
        if (mark := _read_mark(self.folder)) is None:
            return ''
        for name, state in self._states().items():
            if name.startswith(MODEL) and mark['sent'].get(name) != state:
                return 'model'
        for name in file_names(self.folder):
            match = _STEP.fullmatch(name)
            if match and match[2] == HASHES and name not in files:
                return f'checkpoint {match[1]}'
        return ''

    def _states(self) -> dict[str, list[int]]:
        """Name -> size and time of the files that are copied, without checkpoints."""
        states = {}
        for name in file_names(self.folder):
            if not name.startswith((f'{CHECKPOINTS}/', '.')) and '/.' not in name:
                with contextlib.suppress(FileNotFoundError):  # replaced at this moment
                    status = (self.folder / name).stat()
                    states[name] = [status.st_size, status.st_mtime_ns]
        return states

    def _write_mark(self, sent: dict[str, list[int]]) -> None:
        with atomic_file(self.folder / MARK) as temporary:
            temporary.write_text(json.dumps({'url': self.url, 'sent': sent}), encoding='utf-8')

    def send(self) -> None:
        """Copies all files but checkpoints that have changed since the last copy.

        Files of a model that another one has replaced are deleted in the store.

        Raises:
          UserError: another machine has taken the run over.
          OSError: the store cannot be written.
        """
        FolderLock(self.url, self.folder).check()
        states, sent = self._states(), (_read_mark(self.folder) or {'sent': {}})['sent']
        copy_to(self.url, self.folder, [n for n, state in states.items() if sent.get(n) != state])
        if f'{MODEL}config.json' in states:
            delete_from(self.url, [n for n in sent if n.startswith(MODEL) and n not in states])
        self._write_mark(states)

    def send_checkpoint(self, step: int) -> None:
        """Copies a complete checkpoint, after the metrics up to it; deletes those that are gone.

        Raises:
          UserError: another machine has taken the run over.
          OSError: the store cannot be written.
        """
        self.send()
        names = file_names(self.folder / CHECKPOINTS / str(step))
        copy_to(f'{self.url}/{CHECKPOINTS}/{step}', self.folder / CHECKPOINTS / str(step), names)
        kept = {path.name for path in (self.folder / CHECKPOINTS).iterdir()}
        gone = [
            name
            for name in remote_files(self.url)
            if (match := _STEP.fullmatch(name)) and match[1] not in kept
        ]
        delete_from(self.url, gone)


@contextlib.contextmanager
def run_folder(run_dir: str) -> Iterator[str]:
    """The folder of this machine for a run; that of a store is copied here, and back at the end.

    Args:
      run_dir: `config.run_dir`.

    Raises:
      UserError: the store cannot be read or written, or several processes share the run.
    """
    if not is_remote(run_dir):
        yield run_dir
        return
    if jax.process_count() > 1:
        raise UserError(
            f'config.run_dir is {run_dir}, and {jax.process_count()} processes save together, for '
            'which they need one folder; mount the bucket on every host and name that folder'
        )
    url = run_dir.rstrip('/')
    run = RemoteRun(url, cache_folder('runs', url))
    lock = FolderLock(url, run.folder)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock.held())
        except OSError as error:
            raise unwritable(f'config.run_dir {url}', error) from None
        run.fetch()
        print(f'{url}: the run works in {run.folder} and copies it with every checkpoint')
        try:
            yield str(run.folder)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error counts
                run.send()
            raise
        try:
            with finishing():
                run.send()
        except OSError as error:
            raise unwritable(url, error) from None


def _read_mark(folder: pathlib.Path) -> dict[str, Any] | None:
    """The content of `MARK`; None where no store has the folder."""
    try:
        found = json.loads((folder / MARK).read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) and {'url', 'sent'} <= found.keys() else None


def run_copy(path: str | os.PathLike) -> pathlib.Path:
    """The folder of this machine for a path that may name a run, or a step of one, in a store.

    Of a run, only its configuration and one checkpoint are copied: the newest, or the named one.

    Raises:
      UserError: the store cannot be read.
    """
    if not is_remote(path):
        return pathlib.Path(path)
    check_scheme(path)
    url = os.fspath(path).rstrip('/')
    match = re.fullmatch(rf'(.+)/{CHECKPOINTS}(?:/([0-9]+))?', url)
    root, step = (match[1], match[2]) if match else (url, None)
    files = remote_files(root)
    whole = [int(m[1]) for m in map(_STEP.fullmatch, files) if m and m[2] == HASHES]
    if not whole:
        return local_copy(url)
    chosen = f'{CHECKPOINTS}/{max(whole) if step is None else step}/'
    folder = local_copy(root, lambda name: name == 'config.json' or name.startswith(chosen))
    others = folder / CHECKPOINTS
    for other in others.iterdir() if others.is_dir() else ():
        if f'{CHECKPOINTS}/{other.name}/' != chosen:  # copied for an earlier command
            shutil.rmtree(other)
    return folder / url[len(root) :].strip('/')
