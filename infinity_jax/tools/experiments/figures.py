"""The figures of a finished run: the matcher's, those of the last held-out evaluation, sizes."""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from infinity_jax.config import required
from infinity_jax.errors import UserError, in_one_line
from infinity_jax.training import flops
from infinity_jax.training.metrics import read_metrics
from infinity_jax.transformer.model import transformer_shapes
from infinity_jax.weights.model_folder import read_configs
from infinity_jax.weights.t5_folder import encoder_shapes

# Kind of `infinity-jax evaluate` -> the last file that it writes; a training ends with the first.
RESULTS = {'demo': 'evaluation.json', 'repair': 'repair.json'}
TRAINING = 'a training'
# What a point runs -> the sources of figures that its folder has.
SOURCES = {
    TRAINING: ('judged', 'held_out', 'sizes'),
    'demo': ('judged',),
    'repair': ('flipped',),
}


class Figure(NamedTuple):
    """A column of the report.

    Attributes:
      heading: at most 24 characters.
      source: which file has it, a key of `_READERS`.
      factor, form: of the numbers in table and plot.
    """

    heading: str
    source: str
    factor: float = 1
    form: str = '.4f'


FIGURES = {
    'emoji_trained': Figure('emoji right (%)', 'judged', 100, '.1f'),
    'emoji_held_out': Figure('held-out pairs (%)', 'judged', 100, '.1f'),
    'background': Figure('backgrounds right (%)', 'judged', 100, '.1f'),
    'flipped_trained': Figure('emoji right (%)', 'flipped', 100, '.1f'),
    'flipped_held_out': Figure('held-out pairs (%)', 'flipped', 100, '.1f'),
    'flipped_background': Figure('backgrounds right (%)', 'flipped', 100, '.1f'),
    'change': Figure('change (RMS, of 255)', 'flipped', 1, '.1f'),
    'reconstructed': Figure('in reconstructions (%)', 'judged', 100, '.1f'),
    'psnr': Figure('PSNR (dB)', 'judged', 1, '.2f'),
    'seconds_per_image': Figure('ms per image', 'judged', 1000, '.1f'),
    'accuracy': Figure('bit accuracy (%)', 'held_out', 100, '.2f'),
    'loss': Figure('loss (nats per bit)', 'held_out'),
    'parameters': Figure('parameters (M)', 'sizes', 1e-6, '.3f'),
    'head_parameters': Figure('parameters of head (M)', 'sizes', 1e-6, '.3f'),
    'head_memory': Figure('memory of the head (MB)', 'sizes', 1e-6, '.2f'),
    'compute': Figure('compute (TFLOP)', 'sizes', 1e-12, '.1f'),
}
DEFAULT = ('emoji_trained', 'emoji_held_out', 'accuracy', 'loss')


def read_figures(run_dir: pathlib.Path, names: Iterable[str]) -> dict[str, float]:
    """The figures `names` of a finished run.

    Args:
      run_dir: of a training of the main job, or of an evaluation, which has only the figures of
        `evaluation.json` or `repair.json`.
      names: of `FIGURES`.

    Raises:
      UserError: a file is missing or damaged, or is of an earlier version without the figure.
    """
    names = tuple(names)
    sources = dict.fromkeys(FIGURES[name].source for name in names)
    found = {}
    for source in sources:
        found.update(_READERS[source](run_dir))
    if absent := [name for name in names if name not in found]:
        model, what_to_do = run_dir / 'model', 'remove the folder and run it again'
        if model.exists():
            what_to_do = f'run infinity-jax evaluate demo --checkpoint {model} --out {run_dir}'
        raise UserError(
            f'{run_dir} has no {", ".join(absent)}, which an earlier version did not measure; '
            f'{what_to_do}'
        )
    return {name: found[name] for name in names}


def _judged(judged: Any) -> dict[str, float]:
    """The matcher's figures, the PSNR of reconstructions in dB, and seconds per generated image.

    Files of earlier versions have no time.
    """
    trained, held_out = (judged[kind]['generated'] for kind in ('trained', 'held_out'))
    figures = {
        'emoji_trained': float(trained['emoji']),
        'emoji_held_out': float(held_out['emoji']),
        'background': (float(trained['background']) + float(held_out['background'])) / 2,
        'reconstructed': float(judged['held_out']['reconstructions']['emoji']),
        'psnr': float(judged['held_out']['psnr']),
    }
    if 'seconds_per_image' in judged:
        figures['seconds_per_image'] = float(judged['seconds_per_image'])
    return figures


def _flipped(judged: Any) -> dict[str, float]:
    """The matcher's figures at the one rate of flips of a run, and the change of the pixels."""
    (kinds,) = judged['rates'].values()
    trained, held_out = (kinds[kind]['generated'] for kind in ('trained', 'held_out'))
    backgrounds = [float(each['background']['value']) for each in (trained, held_out)]
    return {
        'flipped_trained': float(trained['emoji']['value']),
        'flipped_held_out': float(held_out['emoji']['value']),
        'flipped_background': sum(backgrounds) / 2,
        'change': (float(trained['distance']) + float(held_out['distance'])) / 2,
    }


def _of_result(
    kind: str, figures_of: Callable[[Any], dict[str, float]], run_dir: pathlib.Path
) -> dict[str, float]:
    """Figures of the file that a kind of evaluation has written."""
    path = run_dir / RESULTS[kind]
    try:
        return figures_of(json.loads(path.read_text(encoding='utf-8')))
    except FileNotFoundError:
        raise UserError(f'{path} is missing; run the experiment') from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path} is damaged ({in_one_line(error)}); remove it and run the experiment again'
        ) from None


def _held_out(run_dir: pathlib.Path) -> dict[str, float]:
    """Loss and bit accuracy of the last evaluation on held-out data."""
    evaluations = read_metrics(run_dir, 'heldout')
    if not evaluations:
        raise UserError(f'{run_dir} has no held-out evaluation; remove the run and start it again')
    return {name: evaluations[-1][name] for name in ('accuracy', 'loss')}


def _sizes(run_dir: pathlib.Path) -> dict[str, float]:
    """Parameters that are trained and those of the head, bytes of the head, FLOP of the training.

    A text encoder counts in all if it is trained with the transformer.
    The head's bytes are those of a training step, in float32: weights, gradient, both moments and
    moving average, and the logits of a batch with their gradient.
    """
    configs = read_configs(run_dir / 'model')
    transformer = required(configs.transformer, 'transformer')
    schedule = required(configs.schedule, 'schedule')
    run: dict[str, Any] = configs.extra.get('run', {})
    try:
        steps, batch, trains_text = run['steps'], run['batch_size'], run['text']['train']
    except (KeyError, TypeError) as error:
        raise UserError(
            f'{run_dir}/model/config.json has no field extra.run.{in_one_line(error)}; remove the '
            'run and start it again'
        ) from None
    text = required(configs.text, 'text encoder') if trains_text else None
    step = flops.training_step(
        transformer, schedule, batch, transformer.text_length, trained_text=text
    )
    shapes = transformer_shapes(transformer)
    head = _size(shapes['head'])
    logits = batch * schedule.num_tokens * transformer.head_outputs
    return {
        'parameters': _size(shapes) + (_size(encoder_shapes(text)) if text else 0),
        'head_parameters': head,
        'head_memory': 4 * (5 * head + 2 * logits),
        'compute': steps * step.total,
    }


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


_READERS: dict[str, Callable[[pathlib.Path], dict[str, float]]] = {
    'judged': functools.partial(_of_result, 'demo', _judged),
    'flipped': functools.partial(_of_result, 'repair', _flipped),
    'held_out': _held_out,
    'sizes': _sizes,
}
