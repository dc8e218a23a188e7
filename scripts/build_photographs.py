"""Collects the photographs that some packages contain, for testing tokenizers on real images.

apt-get download mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 \
    plasma-workspace-wallpapers
for package in *.deb; do dpkg -x "$package" unpacked; done
pip download --no-deps scikit-image scikit-learn
for package in *.whl; do unzip -q "$package" -d unpacked; done
python scripts/build_photographs.py photographs unpacked/usr/share unpacked

Debian 12's versions of the first four, scikit-image 0.26 and scikit-learn 1.9 contain them all.
"""

import argparse
import pathlib

from PIL import Image

from infinity_jax.errors import UserError

# Folder below /usr/share or site-packages -> file names.
PHOTOGRAPHS = {
    'backgrounds/mate/nature': (
        'Aqua.jpg', 'Blinds.jpg', 'Dune.jpg', 'FreshFlower.jpg', 'Garden.jpg', 'GreenMeadow.jpg',
        'LadyBird.jpg', 'RainDrops.jpg', 'Storm.jpg', 'TwoWings.jpg', 'Wood.jpg',
        'YellowFlower.jpg',
    ),
    'backgrounds': (
        'Bridge_by_Sander_Klootwijk.jpg', 'Dragonfly_by_Bolly.jpg', 'Kleiber_by_Lukas_Baubkus.jpg',
        'Picture_0B_by_freespace.jpg', 'Picture_1A_by_freespace.jpg', 'Wine_by_Jakkub_Mede.jpg',
        'aitzgorri_by_Aitzol_Berasategi.jpg', 'friends_by_Aitzol_Berasategi.jpg',
        'greentock_by_Peter_Nerlich.jpg', 'life_by_Aitzol_Berasategi.jpg',
        'picosdeeuropa_by_Aitzol_Berasategi.jpg', 'seeding_by_Clements_Engelhardt.jpg',
        'sunset_by_Aitzol_Berasategi.jpg',
    ),
    'wallpapers': tuple(
        f'{name}/contents/images/2560x1600.jpg'
        for name in (
            'BytheWater', 'ColdRipple', 'ColorfulCups', 'DarkestHour', 'EveningGlow', 'FallenLeaf',
            'Grey', 'Kite', 'OneStandsOut', 'Path', 'summer_1am',
        )
    ),
    'skimage/data': ('astronaut.png', 'chelsea.png', 'coffee.png', 'motorcycle_left.png',
                     'rocket.jpg'),
    'sklearn/datasets/images': ('china.jpg', 'flower.jpg'),
}  # fmt: skip
EDGE = 256  # pixels of the shorter edge


def find(folders: list[pathlib.Path]) -> list[tuple[str, pathlib.Path]]:
    """The new name and the path of each photograph.

    Raises:
      UserError: some are in none of the folders.
    """
    found, missing = [], []
    for group, names in PHOTOGRAPHS.items():
        for name in names:
            paths = [path for f in folders if (path := f / group / name).is_file()]
            if paths:
                found.append((name.split('/')[0].split('.')[0], paths[0]))
            else:
                missing.append(f'{group}/{name}')
    if missing:
        raise UserError(
            f'{len(missing)} photographs are in none of the folders, the first {missing[0]}; '
            'unpack the packages as the top of this module says and name their folders'
        )
    return found


def build(out: pathlib.Path, folders: list[pathlib.Path], edge: int = EDGE) -> int:
    """Writes each photograph as NAME.png, its shorter edge shrunk to `edge`; returns how many."""
    photographs = find(folders)
    out.mkdir(parents=True, exist_ok=True)
    for name, path in photographs:
        with Image.open(path) as image:
            scale = edge / min(image.size)
            size = tuple(round(n * scale) for n in image.size)
            image.convert('RGB').resize(size, Image.Resampling.LANCZOS).save(out / f'{name}.png')
    return len(photographs)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=pathlib.Path)
    parser.add_argument('folders', type=pathlib.Path, nargs='+')
    parsed = parser.parse_args()
    print(f'{parsed.out}: {build(parsed.out, parsed.folders)} photographs')
