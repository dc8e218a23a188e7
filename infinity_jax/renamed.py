"""Names that changed after version 0.1; the old ones are read until version 0.3."""

import functools
import sys
from collections.abc import Collection

STORED = 'stored'  # instead of a path, for fields of a file that this package wrote
RENAMED_FIELDS = {  # of configurations: old name -> current name
    'picture_size': 'image_size',
    'per_picture': 'per_image',
    'pictures': 'images',
    'levels': 'max_scales',
}


@functools.cache  # once per process
def notice(old: str, new: str) -> None:
    """Prints on stderr that a name which was just used is an old one."""
    print(f'{old} is now {new}; the old name works until version 0.3', file=sys.stderr)


def current_field(name: str, known: Collection[str], where: str = '') -> str:
    """The current name of a configuration field, which may have been renamed.

    Args:
      name: current or old.
      known: names of the existing fields.
      where: dotted path with a dot at its end, for the notice; `STORED`: no notice.
    """
    new = RENAMED_FIELDS.get(name)
    if name in known or new is None or new not in known:
        return name
    if where != STORED:
        notice(f'config field {where}{name}', f'{where}{new}')
    return new
