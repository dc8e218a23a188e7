"""Makes `emoji/files/artwork.zip` from the npm package, for the emoji in `names.csv`.

npm pack emoji-datasource-google@16.0.0
python scripts/build_emoji.py emoji-datasource-google-16.0.0.tgz
"""

import io
import pathlib
import sys
import tarfile
import zipfile

from PIL import Image

from infinity_jax.emoji import artwork
from infinity_jax.errors import UserError

FOLDER_IN_PACKAGE = 'package/img/google/64'


def recompress(png: bytes) -> bytes:
    """The same RGBA pixels in a PNG that is no larger."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert('RGBA').save(buffer, 'PNG', optimize=True)
    return min(png, buffer.getvalue(), key=len)


def build(package: pathlib.Path, target: pathlib.Path) -> int:
    """Writes the images of `names.csv` from the npm package to a zip; returns its size in bytes."""
    wanted = {f'{FOLDER_IN_PACKAGE}/{e.file}.png': f'{e.file}.png' for e in artwork.subset('all')}
    images = {}
    with tarfile.open(package) as archive:
        for member in archive:
            if member.name in wanted:
                images[wanted[member.name]] = recompress(archive.extractfile(member).read())
    missing = sorted(set(wanted.values()) - set(images))
    if missing:
        raise UserError(
            f'{package} lacks {len(missing)} of {len(wanted)} images, the first {missing[0]}; '
            'use the package emoji-datasource-google 16.0.0'
        )
    with zipfile.ZipFile(target, 'w', zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for name in sorted(images):
            # A fixed date, so that the same images give the same bytes.
            archive.writestr(zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, 0)), images[name])
    return target.stat().st_size


if __name__ == '__main__':
    print(f'{artwork.ARTWORK}: {build(pathlib.Path(sys.argv[1]), artwork.ARTWORK)} bytes')
