"""Reads the tokenizer of a model folder, a run folder or a checkpoint of a run."""

import dataclasses
import os
import pathlib

import jax

from infinity_jax.config import ModelConfigs
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.scales import ScaleSchedule
from infinity_jax.training.checkpoint_weights import load_weights
from infinity_jax.training.run_folder import config_without_paths, run_named
from infinity_jax.training.tokenizer.config import TokenizerRunConfig
from infinity_jax.weights.model_folder import LoadedModel, load_model
from infinity_jax.weights.weight_files import read_json

MODEL = 'model'  # where a finished run writes its model


@dataclasses.dataclass(frozen=True)
class TokenizerCheckpoint:
    """A tokenizer and its origin.

    Attributes:
      name: of the checkpoint, as given, for messages.
      loaded: its configuration, weights, schedule and the configuration of its run.
      folded: whether the token grids of its schedule are half as large as the code grids.
      results: default folder for the files of an evaluation.
    """

    name: str
    loaded: LoadedModel
    folded: bool
    results: pathlib.Path


def open_checkpoint(checkpoint: str | os.PathLike) -> TokenizerCheckpoint:
    """Reads a tokenizer; of a run, the averaged weights of the newest checkpoint or a named one.

    Args:
      checkpoint: a model folder; a run folder, its `checkpoints`, or a step of them.

    Raises:
      UserError: it does not exist, or has no tokenizer.
    """
    name = os.fspath(checkpoint)
    if not name:
        raise UserError("--checkpoint is ''; name a model folder or a run folder")
    run_dir, step = run_named(name)
    if run_dir is not None:
        results = run_dir / ('evaluation' if step is None else f'evaluation_{step}')
        return TokenizerCheckpoint(name, _of_run(run_dir, step), False, results)
    folder = pathlib.Path(os.path.abspath(name))
    if (folder / MODEL / 'config.json').is_file():  # a run whose checkpoints were removed
        folder /= MODEL
    loaded = load_model(folder, parts=('tokenizer',))
    if loaded.tokenizer_params is None:
        raise UserError(f'{name}: has no tokenizer; name the model folder of one')
    return TokenizerCheckpoint(name, loaded, loaded.configs.spatial_patchify, _results_of(folder))


def _of_run(run_dir: pathlib.Path, step: int | None) -> LoadedModel:
    fields = read_json(run_dir / 'config.json')
    if fields.get('task') != 'tokenizer':
        raise UserError(
            f'{run_dir}: a run of task {fields.get("task")!r}; wanted one of task tokenizer, or '
            f'its model folder, {run_dir / MODEL}'
        )
    config = from_mapping(TokenizerRunConfig, fields, stored=True)
    configs = ModelConfigs(
        tokenizer=config.tokenizer,
        schedule=ScaleSchedule.free(config.grids) if config.grids else None,
        extra={'run': config_without_paths(config)},
    )
    params = jax.device_get(load_weights(run_dir, step, 'ema'))
    return LoadedModel(configs, tokenizer_params=params)


def _results_of(folder: pathlib.Path) -> pathlib.Path:
    if folder == DEMO_FOLDER:  # results do not belong into an installed package
        return pathlib.Path('evaluation')
    if folder.name == MODEL:
        return folder.with_name('evaluation')
    return folder.with_name(f'{folder.name}_evaluation')
