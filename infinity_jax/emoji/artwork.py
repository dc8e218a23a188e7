"""The embedded emoji: names, subsets and RGBA images (Noto Emoji, see `files/LICENSE.md`)."""

import csv
import dataclasses
import functools
import io
import pathlib
import zipfile

import numpy as np
from PIL import Image

from infinity_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parent / 'files'
ARTWORK = FOLDER / 'artwork.zip'
REMEDY = (
    'wanted a zip of PNGs; install the package again, or make the zip again with '
    'python scripts/build_emoji.py'
)
SUBSETS = ('starter', 'demo', 'unseen', 'all')


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One line of `names.csv`."""

    name: str  # a lower-case noun phrase without article: 'red apple'
    file: str  # the code points, joined by dashes: '1f34e'
    article: str  # 'a' for countable nouns (captions make it 'an'), '' for plurals and mass nouns
    category: str


@functools.cache
def _by_name() -> dict[str, Emoji]:
    with open(FOLDER / 'names.csv', newline='', encoding='utf-8') as lines:
        return {row['name']: Emoji(**row) for row in csv.DictReader(lines)}


def find(name: str) -> Emoji:
    """Finds an emoji by name; raises `UserError` for an unknown name."""
    if name not in _by_name():
        raise UserError(f'no emoji is named {name!r}; choose one of emoji/files/names.csv')
    return _by_name()[name]


@functools.cache
def subset(name: str) -> tuple[Emoji, ...]:
    """The emoji of a subset.

    They are `'starter'` (80 that differ clearly), `'demo'` (206, those of the shipped model),
    `'unseen'` (24 others, to fine-tune it) or `'all'`.
    """
    if name not in SUBSETS:
        raise UserError(f'subset {name!r} is unknown; choose one of {", ".join(SUBSETS)}')
    if name == 'all':
        return tuple(_by_name().values())
    lines = (FOLDER / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return tuple(find(line) for line in lines if line and not line.startswith('#'))


@functools.cache
def _files(archive: pathlib.Path) -> dict[str, bytes]:
    """All files of a zip, 5 MB; no handle stays open, which worker processes would share."""
    try:
        with zipfile.ZipFile(archive) as images:
            return {name: images.read(name) for name in images.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f'{archive} cannot be read ({error}): {REMEDY}') from error


def read_image(archive: pathlib.Path, file: str) -> Image.Image:
    """Reads an RGBA image from a zip of PNGs; raises `UserError` if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(_files(archive)[f'{file}.png'])) as image:
            return image.convert('RGBA')
    except (OSError, KeyError, SyntaxError) as error:
        raise UserError(
            f'{archive}: image {file}.png cannot be read ({error}): {REMEDY}'
        ) from error


@functools.cache
def sprite(name: str, pixels: int) -> np.ndarray:
    """The emoji as premultiplied RGBA, uint8 (pixels, pixels, 4).

    Alpha is premultiplied before resizing, or the colour of transparent pixels would bleed into
    edges.
    """
    image = read_image(ARTWORK, find(name).file).convert('RGBa')
    if pixels != image.width:
        image = image.resize((pixels, pixels), Image.Resampling.LANCZOS)
    rgba = np.array(image)
    # Lanczos overshoots at edges; a premultiplied colour must not exceed its alpha.
    rgba[..., :3] = np.minimum(rgba[..., :3], rgba[..., 3:])
    rgba.setflags(write=False)  # the cache gives all callers the same array
    return rgba
