"""Folders of images without captions, for training a tokenizer."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.decode import ENDINGS
from infinity_jax.data.passed_over import PassedOver, ending_reason, is_hidden
from infinity_jax.data.records import RawRecord, RecordLocation, open_file
from infinity_jax.errors import UserError
from infinity_jax.runtime.remote import RemotePath, any_path


def image_paths(folder: pathlib.Path, passed_over: PassedOver | None = None) -> list[pathlib.Path]:
    """The images in a folder and its subfolders, sorted by name.

    Hidden files and folders are passed over. A link to a folder is followed, but no folder is read
    twice.

    Args:
      folder: the folder.
      passed_over: counts the files that are no images.
    """
    passed_over, images = passed_over or PassedOver(), []
    for path in files_below(folder, passed_over):
        name = path.relative_to(folder).as_posix()
        if is_hidden(path.name):
            passed_over.add('hidden file', name)
        elif path.suffix.lower() not in ENDINGS:
            passed_over.add(f'file of {ending_reason(name)}', name)
        elif not path.is_file():
            passed_over.add('not a regular file', name)
        else:
            images.append(path)
    return sorted(images)


def files_below(folder: pathlib.Path, passed_over: PassedOver) -> Iterator[pathlib.Path]:
    """All files of a folder and its subfolders; hidden folders are counted in `passed_over`.

    Links to folders come last, so that own folders keep their names.
    """
    if isinstance(folder, RemotePath):
        yield from _remote_files(folder, passed_over)
        return
    roots, seen = [folder], set()
    while roots:
        for root, folders, files in os.walk(roots.pop(0)):
            here, own = pathlib.Path(root), []
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            for name in sorted(folders):
                if is_hidden(name):
                    passed_over.add('hidden folder', (here / name).relative_to(folder).as_posix())
                elif (here / name).is_symlink():
                    roots.append(here / name)
                else:
                    own.append(name)
            folders[:] = own
            yield from (here / name for name in sorted(files))


def _remote_files(folder: RemotePath, passed_over: PassedOver) -> Iterator[Any]:
    """`files_below` of a store, which has no links."""
    hidden = set()
    for path in sorted(folder.files_below()):
        parents = path.relative_to(folder).parents
        inside = [parent for parent in parents if is_hidden(parent.name)]
        if not inside:
            yield path
        elif inside[-1] not in hidden:
            hidden.add(inside[-1])
            passed_over.add('hidden folder', inside[-1].as_posix())


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """The images in a folder and its subfolders. A location is (number of the image,).

    Attributes:
      folder: the folder.
      names: paths of the images, relative to the folder.
    """

    folder: pathlib.Path
    names: tuple[str, ...]

    @classmethod
    def open(cls, config: SourceConfig) -> 'FolderSource':
        folder = any_path(config.path).absolute()
        names = tuple(path.relative_to(folder).as_posix() for path in image_paths(folder))
        if not names:
            raise UserError(
                f'data source {config.path}: no images in there ({", ".join(ENDINGS)}); name '
                'the folder that holds them'
            )
        return cls(folder, names)

    @property
    def name(self) -> str:
        return f'folder {self.folder}'

    def files(self) -> tuple[pathlib.Path, ...]:
        return tuple(self.folder / name for name in self.names)

    def locations(self, passed_over: PassedOver | None = None) -> Iterator[RecordLocation]:
        if passed_over is not None:
            image_paths(self.folder, passed_over)
        return ((number,) for number in range(len(self.names)))

    def read(self, location: RecordLocation) -> RawRecord:
        path = self.folder / self.names[location[0]]
        return RawRecord(functools.partial(open_file, path), None)

    def record_name(self, location: RecordLocation) -> str:
        return self.names[location[0]]
