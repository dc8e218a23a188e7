"""The record of a run: metrics.jsonl, TensorBoard, progress bar, loss spikes and loss plot."""

import collections
import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.runtime.local_files import open_regular
from infinity_jax.training.event_file import EventFile

FILE_NAME = 'metrics.jsonl'
# A loss is a spike where it exceeds the median of the last losses by more than this margin.
SPIKE_WINDOW = 100  # last losses, of which the median is the recent level
MIN_LOSSES = 20  # no spike before that many losses
MAX_DEVIATIONS = 8  # margin in standard deviations
MIN_MARGIN = 0.02  # margin as a share of the level, however steady the losses were
SIGMA_PER_MEDIAN_DEVIATION = 1.4826  # of normally distributed numbers


class SpikeDetector:
    """Compares each loss with the median of recent losses, which single outliers do not move.

    Args:
      losses: the recent ones before the first update, oldest first.
    """

    def __init__(self, losses: Iterable[float] = ()):
        self.losses: collections.deque[float] = collections.deque(losses, maxlen=SPIKE_WINDOW)

    def update(self, loss: float) -> float | None:
        """Adds a loss to the recent ones and compares it with those before it.

        Returns:
          the recent level if `loss` is a spike above it, otherwise None. A loss that is not finite
          is ignored, since its step is skipped.
        """
        if not math.isfinite(loss):
            return None
        level = None
        if len(self.losses) >= MIN_LOSSES:
            losses = np.array(self.losses)
            median = float(np.median(losses))
            deviation = float(np.median(np.abs(losses - median))) * SIGMA_PER_MEDIAN_DEVIATION
            margin = max(MAX_DEVIATIONS * deviation, MIN_MARGIN * abs(median))
            level = median if loss > median + margin else None
        self.losses.append(loss)
        return level


class RunLog:
    """Writes metrics by step into a run folder; only the first process writes.

    Args:
      folder: the run folder.
      start_step: step from which the run continues. Later lines, of a run that was killed after its
        last checkpoint, are dropped so that every step appears once. The last evaluation of a
        finished run and the first of a run that starts over are dropped too: they are repeated.
      num_steps: length of the run.
      losses: the `recent_losses` of the checkpoint that is resumed.

    Raises:
      UserError: a line of metrics.jsonl is damaged.
      OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        start_step: int,
        num_steps: int,
        losses: Iterable[float] = (),
    ):
        self.path = pathlib.Path(folder) / FILE_NAME
        self._active = jax.process_index() == 0
        self._kept: set[tuple[int, str]] = set()
        self._bar = None
        self._spikes = SpikeDetector(losses)
        if not self._active:
            return
        import tqdm  # here: reading metrics does without it

        repeated = start_step in (0, num_steps) or start_step > num_steps
        self._kept = _drop_lines(self.path, start_step, start_step - repeated)
        self._file = self.path.open('a', encoding='utf-8')
        self._board = EventFile(self.path.parent / 'tensorboard', purge_step=start_step + 1)
        self._bar = tqdm.tqdm(
            total=num_steps,
            initial=start_step,
            unit='step',
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 20.0,
        )

    def has(self, step: int, split: str) -> bool:
        """Whether an earlier start of the run wrote the line of this step, in the first process."""
        return (step, split) in self._kept

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Adds one line for `step`. Arrays of one axis become lists (one entry per scale).

        Args:
          step: steps taken.
          split: 'train' or 'heldout'.
          values: name to scalar or 1-D array, host or device.
        """
        if not self._active:
            return
        values = {name: np.asarray(value).tolist() for name, value in values.items()}
        self._file.write(json.dumps({'step': step, 'split': split, **values}) + '\n')
        self._file.flush()
        scalars = {}
        for name, value in values.items():
            entries = value if isinstance(value, list) else [value]
            for k, entry in enumerate(entries):
                suffix = f'/{k:02}' if isinstance(value, list) else ''
                scalars[f'{split}/{name}{suffix}'] = entry
        self._board.write(step, scalars)

    @property
    def recent_losses(self) -> list[float]:
        """Losses of the last steps, with which a resumed run finds the same spikes."""
        return list(self._spikes.losses)

    def spike(self, step: int, loss: float) -> dict[str, float]:
        """Adds the loss of a step, and prints a line if it is far above the recent level.

        Returns:
          {'loss_level': that level} for such a step, otherwise {}.
        """
        level = self._spikes.update(loss)
        if level is None:
            return {}
        self.say(f'step {step}: loss {loss:.4g} is far above its recent level of {level:.4g}')
        return {'loss_level': level}

    def progress(self, step: int, **shown: float) -> None:
        """Moves the bar to `step` and shows a few numbers next to rate and time left."""
        if self._bar is not None:
            if shown:
                self._bar.set_postfix({k: f'{v:.4g}' for k, v in shown.items()}, refresh=False)
            self._bar.update(step - self._bar.n)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time inside out of the bar's rate and time left."""
        start = time.monotonic()
        yield
        if self._bar is not None:
            paused = time.monotonic() - start
            self._bar.start_t += paused
            self._bar.last_print_t += paused

    def say(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Closes all files; lines that a full disk did not take have already failed in `write`."""
        if not self._active:
            return
        for opened in (self._bar, self._file, self._board):
            if opened is not None:
                with contextlib.suppress(OSError):
                    opened.close()


def read_metrics(folder: str | os.PathLike, split: str = 'train') -> list[dict[str, Any]]:
    """The lines of one split in a run folder, in order of steps.

    Raises:
      UserError: a line is damaged.
    """
    records = (record for _, record in _lines(pathlib.Path(folder) / FILE_NAME))
    return [record for record in records if record['split'] == split]


def _lines(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of metrics.jsonl with their contents, but for a last one that a kill cut short.

    Raises:
      UserError: another line is damaged.
    """
    if not path.exists():
        return []
    with open_regular(path) as file:
        *lines, rest = file.read().split(b'\n')
    if rest.strip(b'\0') and not rest.startswith(b'{'):
        lines.append(rest)  # no start of a line of ours
    parsed = []
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode()  # of bytes, json guesses the encoding
            record = json.loads(text)
            if not _is_ours(record):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(
                f'{path} line {number} is damaged: {line[:40]!r}; wanted an object with step, '
                'split and numbers. Remove that line or move the file away, then start again'
            ) from None
        parsed.append((text + '\n', record))
    return parsed


def _is_ours(record: Any) -> bool:
    """Whether a parsed line has what `RunLog.write` writes: numbers, and lists of numbers."""
    if not isinstance(record['split'], str) or type(record['step']) is not int:
        return False
    for name, value in record.items():
        is_list = isinstance(value, list)
        if is_list and name == 'loss' or not is_list and name.endswith('_per_scale'):
            return False
        numbers = value if is_list else [value]
        if name != 'split' and not all(isinstance(number, (int, float)) for number in numbers):
            return False
    return True


def plot_losses(folder: str | os.PathLike) -> pathlib.Path | None:
    """Plots metrics.jsonl as losses.png; returns None before the first training line.

    The panels are the loss; held-out bit accuracy per scale or PSNR, if any; and the
    discriminator's loss, if any.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train, heldout = (read_metrics(folder, split) for split in ('train', 'heldout'))
    if not train:
        return None
    second = next((n for n in ('accuracy_per_scale', 'psnr') if heldout and n in heldout[-1]), None)
    adversarial = [record for record in train if record.get('adversarial_weight')]
    panels = 1 + bool(second) + bool(adversarial)
    figure = Figure(figsize=(5 * panels, 4), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    axes[0].plot(*_series(train, 'loss'), label='training', linewidth=0.8)
    if heldout:
        axes[0].plot(*_series(heldout, 'loss'), label='held out', marker='.')
    axes[0].set(xlabel='step', ylabel='loss')
    axes[0].legend()
    if second == 'psnr':
        axes[1].plot(*_series(heldout, 'psnr'), marker='.')
        axes[1].set(xlabel='step', ylabel='held-out PSNR (dB)')
    elif second:
        steps, values = _series(heldout, second)
        majority = heldout[-1]['majority_rate_per_scale']
        for k, line in enumerate(zip(*values)):
            axes[1].plot(steps, line, marker='.', color=f'C{k}', label=f'scale {k + 1}')
            axes[1].axhline(majority[k], color=f'C{k}', linestyle=':', linewidth=0.8)
        axes[1].set(xlabel='step', ylabel='held-out bit accuracy (dotted: majority bit)')
        axes[1].legend()
    if adversarial:
        axes[-1].plot(*_series(adversarial, 'discriminator'), linewidth=0.8)
        axes[-1].axhline(1.0, color='grey', linestyle=':')
        axes[-1].set(xlabel='step', ylabel="discriminator's loss (dotted: chance)")
    path = pathlib.Path(folder) / 'losses.png'
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=100, format='png')
    return path


def _series(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[Any]]:
    """Steps and values of one metric, without values that are not finite."""
    pairs = [(r['step'], r[name]) for r in records if name in r]
    pairs = [(s, v) for s, v in pairs if isinstance(v, list) or math.isfinite(v)]
    return [s for s, _ in pairs], [v for _, v in pairs]


def _drop_lines(path: pathlib.Path, step: int, heldout_step: int) -> set[tuple[int, str]]:
    """Keeps lines up to `step`, held-out ones up to `heldout_step`.

    Returns:
      step and split of the lines that are kept.
    """
    lines = _lines(path)
    kept = [
        (line, (record['step'], record['split']))
        for line, record in lines
        if record['step'] <= (heldout_step if record['split'] == 'heldout' else step)
    ]
    if path.exists():
        with atomic_file(path) as temporary:
            temporary.write_text(''.join(line for line, _ in kept), encoding='utf-8')
    return {key for _, key in kept}
