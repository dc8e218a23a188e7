"""Folders of images without captions, for training a tokenizer."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.records import RawRecord, RecordLocation, open_file
from infinity_jax.errors import UserError

ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.bmp')


def image_paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """The images in a folder and its subfolders, sorted by name."""
    return sorted(p for p in folder.rglob('*') if p.suffix.lower() in ENDINGS)


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
        folder = pathlib.Path(config.path).absolute()
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

    def locations(self) -> Iterator[RecordLocation]:
        return ((number,) for number in range(len(self.names)))

    def read(self, location: RecordLocation) -> RawRecord:
        path = self.folder / self.names[location[0]]
        return RawRecord(functools.partial(open_file, path), None)

    def record_name(self, location: RecordLocation) -> str:
        return self.names[location[0]]
