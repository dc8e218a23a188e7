"""What a user can do with a model that was just trained, as commands."""

import pathlib
import shlex

from infinity_jax.data.config import DataConfig

OWN_PROMPT = 'A PROMPT OF YOUR OWN'
EMOJI_PROMPT = 'a red apple on a light blue background'


def next_commands(folder: pathlib.Path, data: DataConfig) -> str:
    """Three lines: an image, the page, and an evaluation where the truth is known, else a grid.

    Args:
      folder: of the exported model.
      data: that it was trained on.
    """
    checkpoint = f'--checkpoint {shlex.quote(str(folder))}'
    prompt = shlex.quote(OWN_PROMPT if data.sources else EMOJI_PROMPT)
    lines = [
        ('an image', f'infinity-jax generate {prompt} {checkpoint} --out image.png'),
        ('a page', f'infinity-jax serve {checkpoint}'),
        ('an evaluation', f'infinity-jax evaluate demo {checkpoint} --out evaluation'),
    ]
    if data.sources:
        compared = f'infinity-jax generate {prompt} {checkpoint} --grid guidance=1,3,5'
        lines[-1] = ('settings', compared)
    elif data.scenes:
        lines[-1] = ('an evaluation', f'infinity-jax evaluate scenes {checkpoint} --out scenes')
    return '\n'.join(['next:', *(f'  {name + ":":15}{command}' for name, command in lines)])
