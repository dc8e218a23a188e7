"""A lock on a folder of a store: two machines that work in it would delete each other's files.

Stores have no locks. The holder writes a small file there every few seconds. Whoever finds the file
of another machine watches it, and takes the folder over once the file has not changed for a while,
so that a machine that was killed or taken away holds nobody up for long. Processes of one machine
exclude each other by a locked file of its own, which the system releases when a process dies.
"""

import contextlib
import json
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import filelock

from infinity_jax.errors import UserError
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.runtime.remote import file_system, store_errors

NAME = '.lock.json'  # in the folder of the store
BEAT = 10.0  # seconds between two writes of the holder
PATIENCE = 60.0  # seconds without a write after which a holder counts as gone


class FolderLock:
    """The lock of a folder of a store, as one machine sees it.

    Attributes:
      url: the folder.
      owner: a name of this machine's folder for it, equal for all processes that use that folder.

    Args:
      url: the folder.
      folder: the folder of this machine for it; files next to it hold what the lock needs here.
    """

    def __init__(self, url: str, folder: pathlib.Path):
        self.url, self._file = url, f'{url}/{NAME}'
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._local = filelock.FileLock(f'{folder}.lock')
        self.owner = _owner(folder.with_name(f'{folder.name}.owner'))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the folder; waits for up to `PATIENCE` to see whether another machine does.

        Raises:
          UserError: another process works there.
          OSError: the store cannot be read or written.
        """
        try:
            self._local.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f'{self.url}: another process of this machine works on this run; end it, or set '
                'config.run_dir to another place'
            ) from None
        try:
            self._watch()
            self._write()
            stop = threading.Event()
            beats = threading.Thread(target=self._beat, args=(stop,), daemon=True)
            beats.start()
            try:
                yield
            finally:
                stop.set()
                beats.join(BEAT)
                with contextlib.suppress(OSError):  # then it is found unchanged
                    if self._read().get('owner') == self.owner:
                        file_system(self.url).rm_file(self._file)
        finally:
            self._local.release()

    def check(self) -> None:
        """Raises `UserError` if another machine has taken the folder over."""
        if (found := self._read()).get('owner', self.owner) != self.owner:
            raise UserError(
                f'{self.url}: {found.get("host")} has taken this run over, as this machine did not '
                f'write there for {PATIENCE:.0f} s; nothing more is copied from here'
            )

    def _watch(self) -> None:
        """Returns once no other machine holds the folder; raises `UserError` if one does."""
        found = self._read()
        if found.get('owner', self.owner) == self.owner:
            return  # the process of this machine that wrote it has ended: it held the local lock
        host = found.get('host')
        print(f'{self.url}: looks for {PATIENCE:.0f} s whether {host} still works on this run')
        end = time.monotonic() + PATIENCE
        while (now := self._read()) and time.monotonic() < end:
            if now != found:
                raise UserError(
                    f'{self.url}: {host} works on this run; end it there, or set config.run_dir to '
                    'another place'
                )
            time.sleep(BEAT / 4)

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT):
            with contextlib.suppress(OSError, UserError):
                self.check()
                self._write()

    def _read(self) -> dict[str, Any]:
        """The content of the file; {} if there is none."""
        try:
            with store_errors(self._file):
                content = file_system(self.url).cat_file(self._file)
            found = json.loads(content)
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        described = {'owner': self.owner, 'host': socket.gethostname(), 'beat': uuid.uuid4().hex}
        with store_errors(self._file):
            file_system(self.url).pipe_file(self._file, json.dumps(described).encode())


def _owner(path: pathlib.Path) -> str:
    """The name in a file, which is made where it is missing."""
    with contextlib.suppress(OSError, ValueError):
        if name := path.read_text(encoding='utf-8'):
            return name
    with atomic_file(path) as temporary:
        temporary.write_text(uuid.uuid4().hex, encoding='utf-8')
    return path.read_text(encoding='utf-8')
