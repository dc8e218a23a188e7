"""The embedded emoji: names, subsets and RGBA artwork (Noto Emoji, see `files/LICENSE.md`)."""

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
ARTWORK_PIXELS = 64
REMEDY = (
    'wanted a zip of PNGs; install the package again, or make the zip again with '
    'python scripts/build_emoji.py'
)
SUBSETS = ('starter', 'demo', 'all')


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One line of `names.csv`."""

    name: str  # a lower-case noun phrase without article: 'red apple'
    file: str  # the code points, joined by dashes: '1f34e'
    article: str  # 'a' for what is counted (captions turn it into 'an'), '' for plurals and stuff
    category: str


@functools.cache
def _by_name() -> dict[str, Emoji]:
    with open(FOLDER / 'names.csv', newline='', encoding='utf-8') as lines:
        return {row['name']: Emoji(**row) for row in csv.DictReader(lines)}


def find(name: str) -> Emoji:
    """The emoji of that name; an unknown name is a `UserError`."""
    if name not in _by_name():
        raise UserError(f'no emoji is named {name!r}; emoji/files/names.csv lists those there are')
    return _by_name()[name]


@functools.cache
def subset(name: str) -> tuple[Emoji, ...]:
    """The emoji of `'all'`, or of a list: `'starter'` (80 unlike each other) or `'demo'` (206)."""
    if name not in SUBSETS:
        raise UserError(f'subset {name!r} is unknown; choose one of {", ".join(SUBSETS)}')
    if name == 'all':
        return tuple(_by_name().values())
    lines = (FOLDER / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return tuple(find(line) for line in lines if line and not line.startswith('#'))


@functools.cache
def _files(archive: pathlib.Path) -> dict[str, bytes]:
    """All of a zip, still encoded: 5 MB, and no open handle that worker processes would share."""
    try:
        with zipfile.ZipFile(archive) as images:
            return {name: images.read(name) for name in images.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f'{archive} cannot be read ({error}): {REMEDY}') from error


def read_image(archive: pathlib.Path, file: str) -> Image.Image:
    """An RGBA image from a zip of PNGs; one that cannot be decoded is a `UserError`."""
    try:
        with Image.open(io.BytesIO(_files(archive)[f'{file}.png'])) as image:
            return image.convert('RGBA')
    except (OSError, KeyError, SyntaxError) as error:
        raise UserError(
            f'{archive}: image {file}.png cannot be read ({error}): {REMEDY}'
        ) from error


@functools.cache
def sprite(name: str, pixels: int) -> np.ndarray:
    """The emoji at `pixels` x `pixels`: uint8 (pixels, pixels, 4), colours times alpha.

    Resized with premultiplied alpha, or the colour of transparent pixels would bleed into edges.
    """
    image = read_image(ARTWORK, find(name).file).convert('RGBa')
    if pixels != image.width:
        image = image.resize((pixels, pixels), Image.Resampling.LANCZOS)
    rgba = np.array(image)
    # Lanczos overshoots at edges; a premultiplied colour is never above its alpha.
    rgba[..., :3] = np.minimum(rgba[..., :3], rgba[..., 3:])
    rgba.setflags(write=False)  # shared by every caller of this cached function
    return rgba
