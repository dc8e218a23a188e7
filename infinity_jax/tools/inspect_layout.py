"""Reports on a folder of training data of unknown layout: the source that reads it, its records."""

import os
import pathlib
import tempfile
from typing import Any

from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.data.layouts import guess_layout
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping
from infinity_jax.tools.inspect_data import inspect_data
from infinity_jax.training.config import RunConfig
from infinity_jax.training.optimizer import OptimizerConfig

IMAGE_SIZE = 256  # pixels, of the buckets that are shown


def inspect_layout(
    path: str | os.PathLike, *, count: int, out: str | os.PathLike
) -> dict[str, Any]:
    """Prints the layout of a folder and the config line that reads it, then what is in it.

    Args:
      path: a folder, or a file in it.
      count: images on the contact sheet.
      out: path of the contact sheet, a PNG file.

    Returns:
      the printed figures, with the fields of the source in 'source'.

    Raises:
      UserError: the layout is unknown, or no source reads it.
    """
    guess = guess_layout(pathlib.Path(path).absolute())
    if guess is None:
        raise UserError(
            f'{path}: no layout of training data that is known; docs/data.md lists them with what '
            'to write for each'
        )
    print(f'{path}: {guess.what}')
    if guess.source is None:
        raise UserError(f'{path}: {guess.what}: {guess.advice}')
    source = from_mapping(SourceConfig, guess.source)
    if not source.has_captions:
        print('no captions were found: this is for tokenizers, unless text_field names some')
    print(f'config.data.sources = ({guess.source},)')
    with tempfile.TemporaryDirectory() as folder:
        data = DataConfig(
            sources=(source,),
            image_size=IMAGE_SIZE,
            ratios=('all',),
            held_out_share=0.0,
            max_broken_share=1.0,
            repeat_records=True,
            index_dir=folder,
        )
        config = RunConfig(
            task='',
            run_dir=folder,
            steps=1,
            batch_size=1,
            data=data,
            optimizer=OptimizerConfig(learning_rate=1.0),
        )
        return {'source': guess.source, **inspect_data(config, count=count, out=out)}
