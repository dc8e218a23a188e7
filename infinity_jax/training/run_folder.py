"""The description of a run in its run folder, and in the model folder that it exports."""

import dataclasses
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from infinity_jax.errors import UserError, first_line
from infinity_jax.renamed import RENAMED_FIELDS, STORED, current_field
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.training.remote_run import CHECKPOINTS, RemoteRun, run_copy
from infinity_jax.weights.weight_files import read_json

# Fields that hold paths on the machine of the run; a model folder does without them.
PATH_FIELDS = (
    'run_dir', 'init_from', 'tokenizer', 'index_dir', 'path', 'images', 'vgg_weights',
    'lpips_heads',
)  # fmt: skip
# A change of these fields changes no result, so `changed_since` ignores it.
IGNORED_FIELDS = ('run_dir', 'data.num_workers', 'data.index_dir')


def write_description(config: Any, run_dir: pathlib.Path) -> None:
    """Writes config.json and versions.json into the run folder.

    Args:
      config: dataclass of the run.

    Raises:
      UserError: the folder cannot be written.
    """
    described = dataclasses.asdict(config)
    if (remote := RemoteRun.of(run_dir)) is not None:
        described['run_dir'] = remote.url
    versions = {'python': platform.python_version(), 'jax': jax.__version__}
    versions['devices'] = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    if jax.process_index() != 0:
        return
    try:
        for name, content in (('config', described), ('versions', versions)):
            with atomic_file(run_dir / f'{name}.json') as temporary:
                temporary.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    except OSError as error:
        raise UserError(
            f'config.run_dir {run_dir}: {error.strerror}; make it writable or name another place'
        ) from None


def changed_since(config: Any, run_dir: pathlib.Path, ignored: Sequence[str] = ()) -> str:
    """One line on how a configuration differs from that of the run's last start, or ''.

    Args:
      config: dataclass of the run.
      run_dir: holds the `config.json` of the last start; without that file the result is ''.
      ignored: fields that are not compared, besides `IGNORED_FIELDS`.

    Raises:
      UserError: `config.json` is damaged.
    """
    path = run_dir / 'config.json'
    if not path.exists():
        return ''
    try:
        old = _flat(read_json(path))
    except (UserError, RecursionError) as error:
        raise UserError(
            f'{first_line(error)}; move that file away, then start again: it is written once more'
        ) from None
    new = _flat(json.loads(json.dumps(dataclasses.asdict(config))))
    old = {_current_path(name, new): value for name, value in old.items()}
    ignored = (*IGNORED_FIELDS, *ignored)
    names = [n for n in new if n in old and new[n] != old[n] and n not in ignored]
    if not names:
        return ''
    values = {n: f' {old[n]!r} -> {new[n]!r}' for n in names}
    changes = (n + (value if len(value) < 80 else '') for n, value in values.items())
    line = 'changed since this run was last started: ' + ', '.join(changes)
    if any(n in ('seed', 'batch_size') or n.startswith('data.') for n in names):
        line += '; the coming data records differ from those of the unchanged run'
    if 'init_from' in names and new.get('lora.rank'):
        line += '; the adapters so far were trained on the weights of the former init_from'
    return line


def differing_fields(run_dirs: Iterable[pathlib.Path]) -> list[str]:
    """Dotted names of the fields in which runs differ, apart from seed and paths.

    Fields that a run of an older version lacks are not compared.

    Args:
      run_dirs: folders of runs; those without a `config.json` are left out.

    Raises:
      UserError: a `config.json` is damaged.
    """
    paths = [path for folder in run_dirs if (path := folder / 'config.json').exists()]
    runs = [_flat(_without_paths(read_json(path))) for path in paths]
    known = {n: None for run in runs for n in run if n.rpartition('.')[2] not in RENAMED_FIELDS}
    runs = [{_current_path(name, known): value for name, value in run.items()} for run in runs]
    shared = [name for name in (runs or [{}])[0] if all(name in run for run in runs)]
    return [
        name
        for name in shared
        if name not in ('seed', *IGNORED_FIELDS) and any(run[name] != runs[0][name] for run in runs)
    ]


def _flat(described: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Dotted name -> value; lists are values."""
    flat: dict[str, Any] = {}
    for name, value in described.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f'{prefix}{name}.') if nested else {f'{prefix}{name}': value}
    return flat


def _current_path(name: str, known: dict[str, Any]) -> str:
    """The present name of a dotted field of an older version; fields inside lists keep theirs."""
    head, dot, last = name.rpartition('.')
    return head + dot + current_field(last, {n.rpartition('.')[2] for n in known}, STORED)


def run_named(path: str | os.PathLike) -> tuple[pathlib.Path | None, int | None]:
    """The run folder and the step that a path names: RUN, RUN/checkpoints, RUN/checkpoints/STEP.

    A run of a store is copied to this machine first. The step is None, for the newest, where the
    path names none; other folders give (None, None).
    """
    path = run_copy(path)
    if (path / CHECKPOINTS).is_dir():
        return path, None
    if path.name == CHECKPOINTS:
        return path.absolute().parent, None
    if path.absolute().parent.name == CHECKPOINTS and path.name.isdigit():
        return path.absolute().parents[1], int(path.name)
    return None, None


def config_without_paths(config: Any) -> dict[str, Any]:
    """The run's configuration as a model folder stores it."""
    return _without_paths(dataclasses.asdict(config))


def _without_paths(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_without_paths(each) for each in value]
    if not isinstance(value, dict):
        return value
    # `tokenizer` is a path in one task and a group of sizes in the other.
    paths = [name for name in PATH_FIELDS if isinstance(value.get(name), str)]
    return {name: _without_paths(each) for name, each in value.items() if name not in paths}
