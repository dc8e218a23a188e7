"""An experiment: points that differ in a few fields of one config file, such as strengths."""

import dataclasses
import difflib
import json
import pathlib
import runpy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.tools.experiments.figures import (
    DEFAULT,
    FIGURES,
    RESULTS,
    SOURCES,
    TRAINING,
)

FILE_NAME = 'experiment.json'  # in the folder of an experiment's runs
TABLE = 'EXPERIMENTS'  # of a config file: name -> title, axis, points
TOKENIZERS = 'tokenizers'  # FILE:tokenizers/NAME is the training of a tokenizer that points share
# Keys that an experiment and a point have to have, and those that they may have.
_KEYS, _OPTIONS = ('title', 'axis', 'points'), ('figures', 'log_axis', 'scaling')
_POINT_KEYS, _POINT_OPTIONS = ('x', 'series'), ('fields', 'evaluate', 'tokenizer', 'model')


@dataclasses.dataclass(frozen=True)
class Point:
    """One training or evaluation.

    Attributes:
      x: its position on the axis of the plot.
      series: the line of the plot that it belongs to.
      evaluate: what follows `infinity-jax evaluate`: a kind of `RESULTS` and its flags; None: the
        point trains a model.
      tokenizer: name of the tokenizer that is trained first; '': the demo's.
      model: EXPERIMENT/POINT whose model of the same seed is evaluated; '': the one that the flags
        name.
      fields: dotted name of a field of the configuration -> value, where the point changes it.
    """

    x: float
    series: str
    evaluate: tuple[str, ...] | None = None
    tokenizer: str = ''
    model: str = ''
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def result(self) -> str:
        """Name of the last file in the folder of a finished run."""
        return RESULTS[self.evaluate[0] if self.evaluate else 'demo']


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The points of an experiment by name, and what its report shows.

    Attributes:
      name: in the config file, and of the folder.
      title, axis: labels of the plot.
      points: by name.
      figures: the columns of the table and the panels of the plot, see `figures.FIGURES`.
      log_axis: whether the axis is logarithmic.
      scaling: whether power laws of the loss are fitted, see `scaling`.
    """

    name: str
    title: str
    axis: str
    points: dict[str, Point]
    figures: tuple[str, ...] = DEFAULT
    log_axis: bool = False
    scaling: bool = False

    def varied_fields(self) -> list[str]:
        """Dotted names of the fields in which the points that train differ.

        They are those of their `fields`, and the bits of a token where their tokenizers differ.
        """
        trained = [point for point in self.points.values() if point.evaluate is None]
        changes = [{'transformer.bits': point.tokenizer, **point.fields} for point in trained]
        absent = object()  # a point without a change of the field
        return [
            name
            for name in dict.fromkeys(name for fields in changes for name in fields)
            if any(f.get(name, absent) != changes[0].get(name, absent) for f in changes)
        ]


def read_experiment(spec: str) -> Experiment:
    """Reads the experiment NAME of a config file, given as FILE:NAME.

    Raises:
      UserError: there is no such file or experiment, or its entry lacks a part.
    """
    file, _, name = spec.partition(':')
    if not pathlib.Path(file).is_file():
        raise UserError(
            f'{file}: no such file; wanted FILE:NAME, such as '
            'configs/experiments.py:self_correction'
        )
    try:
        found = runpy.run_path(file).get(TABLE, {})
    # The file is any Python code, so any error may come out of it.
    except Exception as error:
        raise UserError(f'{file}: {type(error).__name__}: {in_one_line(error, 300)}') from None
    if name not in found:
        raise UserError(
            f'{file} has no experiment {name!r}; wanted FILE:NAME with one of '
            f'{", ".join(found) or f"its {TABLE}, which is missing"}'
        )
    return _experiment(name, found[name], file)


def save_experiment(folder: pathlib.Path, experiment: Experiment) -> None:
    """Writes what a report needs, next to the runs."""
    with atomic_file(folder / FILE_NAME) as temporary:
        text = json.dumps(dataclasses.asdict(experiment), indent=2)
        temporary.write_text(text + '\n', encoding='utf-8')


def load_experiment(folder: pathlib.Path) -> Experiment:
    """What `save_experiment` wrote.

    Raises:
      UserError: the folder has no such file, or it is damaged.
    """
    path = folder / FILE_NAME
    try:
        entry = json.loads(path.read_text(encoding='utf-8'))
        return _experiment(entry.pop('name'), entry, str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f'{folder} has no {FILE_NAME}; wanted the folder of an experiment'
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is damaged ({in_one_line(error)}); run the experiment') from None


def _experiment(name: str, entry: Any, where: str) -> Experiment:
    _check_keys(entry, _KEYS, _OPTIONS, f'{where}: experiment {name}')
    if not isinstance(entry['points'], Mapping) or not entry['points']:
        raise UserError(f'{where}: experiment {name} has no points; wanted name -> point')
    points = {
        str(label): _point(each, f'{where}: point {label} of {name}')
        for label, each in entry['points'].items()
    }
    options = {option: entry[option] for option in _OPTIONS if option in entry}
    if 'figures' in options:
        options['figures'] = _words(options['figures'], f'{where}: figures of experiment {name}')
    experiment = Experiment(name, str(entry['title']), str(entry['axis']), points, **options)
    unknown = [figure for figure in experiment.figures if figure not in FIGURES]
    if unknown or not experiment.figures:
        raise UserError(
            f'{where}: figures of experiment {name} are {", ".join(experiment.figures) or "none"}; '
            f'wanted some of {", ".join(FIGURES)}'
        )
    for label, point in points.items():
        key, mistake = _mistake(point, experiment)
        if mistake:
            raise UserError(f'{where}: {key} of point {label} {mistake}')
    return experiment


def _mistake(point: Point, experiment: Experiment) -> tuple[str, str]:
    """The key of a point that does not fit, and how it does not; ('', '') if all do.

    Such mistakes would show in the report, after hours of training.
    """
    flags = point.evaluate or ()
    kind = TRAINING if point.evaluate is None else ''.join(flags[:1])
    if kind not in SOURCES:
        found = ' '.join(flags) or 'empty'
        return 'evaluate', f'is {found}; wanted {" or ".join(RESULTS)}, then flags'
    known = [name for name, figure in FIGURES.items() if figure.source in SOURCES[kind]]
    absent = ', '.join(name for name in experiment.figures if name not in known)
    if absent:
        return 'figures', f'are {absent}, which {kind} does not give; wanted {", ".join(known)}'
    rates = _values_of('--rates', flags)
    if kind == 'repair' and len(rates) != 1:
        return 'evaluate', f'has --rates {",".join(rates) or "of its default"}; wanted one rate'
    if point.tokenizer and flags:
        return 'tokenizer', f'is {point.tokenizer}, but the point trains nothing; remove it'
    if point.model and not flags:
        return 'model', f'is {point.model}, but the point trains a model; wanted evaluate with it'
    if experiment.log_axis and point.x <= 0:
        return 'x', f'is {point.x:g}; wanted more than 0 on a logarithmic axis'
    return '', ''


def _values_of(flag: str, words: Sequence[str]) -> list[str]:
    """The values of a flag, `--flag 1,2` or `--flag=1,2`; without the flag none."""
    line = '\0'.join(words).replace(f'{flag}=', f'{flag}\0').split('\0')
    return line[line.index(flag) + 1].split(',') if flag in line[:-1] else []


def _point(entry: Any, where: str) -> Point:
    _check_keys(entry, _POINT_KEYS, _POINT_OPTIONS, where)
    flags = entry.get('evaluate')
    try:
        x = float(entry['x'])
    except (TypeError, ValueError):
        raise UserError(f'{where}: x is {entry["x"]!r}; wanted a number') from None
    fields = entry.get('fields') or {}
    if not isinstance(fields, Mapping):
        raise UserError(f'{where}: fields are {fields!r}; wanted a dict of name -> value')
    return Point(
        x,
        str(entry['series']),
        None if flags is None else _words(flags, f'{where}: evaluate'),
        str(entry.get('tokenizer') or ''),
        str(entry.get('model') or ''),
        fields,
    )


def _check_keys(entry: Any, wanted: Sequence[str], options: Sequence[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise UserError(f'{where} is a {type(entry).__name__}; wanted a dict')
    known = (*wanted, *options)
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f'did you mean {near[0]}?' if near else f'known: {", ".join(known)}'
            raise UserError(f'{where} has the unknown key {key!r}; {hint}')
    if absent := [key for key in wanted if key not in entry]:
        raise UserError(f'{where} lacks {", ".join(absent)}')


def _words(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UserError(f'{where} is {value!r}; wanted several words, such as [{value!r}]')
    return tuple(map(str, value))
