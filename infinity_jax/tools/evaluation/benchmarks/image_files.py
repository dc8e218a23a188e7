"""Files that appear whole or not at all, written by threads while the next images are generated."""

import concurrent.futures
import os
import pathlib
import shutil
from typing import Any

import numpy as np
from PIL import Image

from infinity_jax.errors import UserError
from infinity_jax.runtime.atomic_write import flush_and_rename, temporary_path
from infinity_jax.tools.evaluation.benchmarks.layout import GRID_EDGE

JPEG_QUALITY = 95  # OpenCV's default, which the released scripts write with
ENDS = {'.png': b'IEND\xaeB`\x82', '.jpg': b'\xff\xd9'}  # the last bytes of a whole file
THREADS = 4


def is_whole(path: pathlib.Path, size: tuple[int, int]) -> bool:
    """Whether a file is a complete image; only the checksums of a PNG are computed.

    Args:
      path: of a .png or .jpg, which may be absent.
      size: (height, width) that it must have.
    """
    try:
        with path.open('rb') as file:
            file.seek(-len(ENDS[path.suffix]), os.SEEK_END)
            if file.read() != ENDS[path.suffix]:
                return False
        with Image.open(path) as image:
            image.verify()
            return image.size == size[::-1]
    except Exception:  # damaged images raise errors of any kind
        return False


def has_text(path: pathlib.Path, text: str) -> bool:
    """Whether a file has exactly this text."""
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def grid(images_NYX3: np.ndarray) -> np.ndarray:
    """Four images as one: the first two above the others, as DPG-Bench's judge cuts them."""
    rows = np.split(images_NYX3, GRID_EDGE)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


class ImageWriter:
    """Writes files below a folder from a few threads; a context manager.

    Each is written into a temporary folder next to the others, flushed to the disk and renamed into
    place. What a killed process leaves there is removed by the next one.
    """

    def __init__(self, folder: pathlib.Path):
        """Takes the folder of the benchmark, which is created.

        Raises:
          UserError: nothing can be written there.
        """
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._temporary = temporary_path(folder / 'writing')
            self._temporary.mkdir()
        except OSError as error:
            raise _unwritable(folder, error) from None
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS)
        self._waiting: list[concurrent.futures.Future] = []

    def __enter__(self) -> 'ImageWriter':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(cancel_futures=True)
            shutil.rmtree(self._temporary, ignore_errors=True)

    def image(self, name: str, pixels_YX3: np.ndarray) -> None:
        """Starts to write an image, as PNG or JPEG by the ending of its path below the folder."""
        self._start(name, lambda path: _save(pixels_YX3, path))

    def text(self, name: str, text: str) -> None:
        """Starts to write a text file in UTF-8."""
        self._start(name, lambda path: path.write_bytes(text.encode()))

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          UserError: a file could not be written.
        """
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            try:
                future.result()
            except OSError as error:
                raise _unwritable(self._folder, error) from None

    def _start(self, name, save) -> None:
        number = len(self._waiting)

        def write():
            place = self._folder / name
            temporary = self._temporary / f'{number}{place.suffix}'
            save(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            flush_and_rename(temporary, place)

        self._waiting.append(self._pool.submit(write))


def _save(pixels_YX3: np.ndarray, path: pathlib.Path) -> None:
    options: dict[str, Any] = {'.jpg': {'quality': JPEG_QUALITY}}.get(path.suffix, {})
    Image.fromarray(pixels_YX3).save(path, **options)


def _unwritable(folder: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f'--out {folder}: cannot be written ({error.strerror or error}); the same command goes on '
        'once there is room, or name another folder'
    )
