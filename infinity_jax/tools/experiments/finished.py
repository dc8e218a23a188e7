"""Whether a finished run has the settings that an experiment asks for now.

Otherwise the figures of other settings, or of another model, would be taken for those of a point.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.tools.commands.config_flags import read_config_file
from infinity_jax.training.init_from import run_config
from infinity_jax.training.run_folder import changed_since
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.training.transformer.features import tokenizer_fingerprint
from infinity_jax.weights.integrity import hash_file
from infinity_jax.weights.model_folder import load_model
from infinity_jax.weights.weight_files import read_json

FILE_NAME = 'evaluated.json'  # in the folder of an evaluation


def check_training(run_dir: pathlib.Path, spec: str, overrides: Sequence[str] = ()) -> None:
    """Checks a finished training against a config file.

    Args:
      run_dir: of the training; without a `config.json` nothing is checked.
      spec: FILE:VARIANT of the config file.
      overrides: --config.FIELD=VALUE, one string each.

    Raises:
      UserError: a field differs that changes results, or the tokenizer. The tokenizer's path may
        differ, since a folder of experiments can be moved; a tokenizer that is gone is not
        compared.
    """
    if not (run_dir / 'config.json').exists():
        return
    config = run_config(read_config_file(spec, overrides))
    _refuse(run_dir, changed_since(config, run_dir, ('tokenizer',)))
    if isinstance(config, T2IConfig):
        used, asked = run_dir / 'model', pathlib.Path(config.tokenizer or DEMO_FOLDER)
        if used.exists() and asked.exists() and _tokenizer_of(used) != _tokenizer_of(asked):
            _refuse(run_dir, f'{asked} holds another tokenizer')


def save_evaluation(run_dir: pathlib.Path, flags: Sequence[str], model: pathlib.Path) -> None:
    """Writes what an evaluation depends on into its folder, before it starts.

    Args:
      run_dir: of the evaluation.
      flags: its kind and flags, as the config file has them, and its seed.
      model: folder of the model.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic_file(run_dir / FILE_NAME) as temporary:
        text = json.dumps(_described(flags, model), indent=2)
        temporary.write_text(text + '\n', encoding='utf-8')


def check_evaluation(run_dir: pathlib.Path, flags: Sequence[str], model: pathlib.Path) -> None:
    """Checks a finished evaluation; one of an earlier version, without a description, passes.

    Args:
      run_dir, flags, model: as in `save_evaluation`. A model folder that is gone is not compared.

    Raises:
      UserError: its flags or its model differ, or the description is damaged.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        return
    old, new = read_json(path), _described(flags, model)
    if old.get('flags') != new['flags']:
        _refuse(run_dir, f'flags {" ".join(old.get("flags", ()))} -> {" ".join(flags)}')
    if new['model'] and old.get('model') != new['model']:
        _refuse(run_dir, f'{model} holds another model')


def differing_flags(run_dirs: Iterable[pathlib.Path]) -> bool:
    """Whether evaluations were made with different flags, apart from their seeds.

    Raises:
      UserError: a description is damaged.
    """
    paths = [path for folder in run_dirs if (path := folder / FILE_NAME).exists()]
    flags = [read_json(path).get('flags', []) for path in paths]
    kept = [[word for word in words if not str(word).startswith('--seed=')] for words in flags]
    return any(words != kept[0] for words in kept)


def _tokenizer_of(folder: pathlib.Path) -> str:
    return tokenizer_fingerprint(load_model(folder, parts=('tokenizer',)))


def _described(flags: Sequence[str], model: pathlib.Path) -> dict[str, Any]:
    files = sorted(path for path in model.rglob('*') if path.is_file())
    hashes = {path.relative_to(model).as_posix(): hash_file(path) for path in files}
    return {'flags': list(flags), 'model': hashes}


def _refuse(run_dir: pathlib.Path, changes: str) -> None:
    if changes:
        raise UserError(
            f'{run_dir} is finished with other settings ({changes}); remove that folder to run it '
            'again, or name another folder with --out'
        )
