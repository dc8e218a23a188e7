"""A model as one self-describing folder, to generate images with or to continue training.

    config.json               dimensions, schedule, and free entries under `extra`
    transformer.safetensors   our parameter paths joined by dots, layers stacked; above 5 GB in
                              shards with an index
    tokenizer.safetensors
    text_encoder/             a Hugging Face folder: config.json, model.safetensors, tokenizer.json

Any part may be absent. The safetensors have a hash of each tensor in their header, compared when
they are read. A folder is written next to its target and renamed into place, so that an
interrupted save never harms the last good folder.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
import safetensors
from jax.sharding import Mesh

from infinity_jax.config import DTYPES, ModelConfigs, TokenizerConfig, TransformerConfig, required
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping
from infinity_jax.renamed import STORED, current_field
from infinity_jax.runtime.atomic_write import atomic_folder, previous_folder
from infinity_jax.runtime.hub import WEIGHT_ENDINGS
from infinity_jax.runtime.remote import any_path
from infinity_jax.runtime.remote_copy import local_copy, local_output
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.weights.file_hashes import ENTRY, file_hashes, file_problems
from infinity_jax.weights.fingerprint import kept_by, partner_fingerprint
from infinity_jax.weights.part_weights import (
    Params,
    flat_shapes,
    part_shapes,
    read_part,
    write_part,
)
from infinity_jax.weights.t5_folder import load_encoder, read_text_config, save_encoder
from infinity_jax.weights.weight_files import name_problems, read_json

FORMAT = 'infinity_jax'
VERSION = 1
PARTS = ('transformer', 'tokenizer', 'text_encoder')
# Fields that the first folders lack; their defaults are the behaviour of that time.
LATER_FIELDS = ('decoder_blocks', 'kernel_size', 'base_dtype', 'classifier')

Config = TypeVar('Config')


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model's configurations with its weights; parts that are absent, or not read, are None.

    Attributes:
      configs: of all parts, read or not.
      transformer_params, tokenizer_params, text_params: parameter trees, numpy or jax arrays.
      text_tokenizer: the text encoder's vocabulary.
    """

    configs: ModelConfigs = ModelConfigs()
    transformer_params: Params | None = None
    tokenizer_params: Params | None = None
    text_params: Params | None = None
    text_tokenizer: TextTokenizer | None = None


def save_model(folder: str | Path, loaded: LoadedModel, dtype: str = 'float32') -> None:
    """Writes a model folder, in the place of an existing one.

    Args:
      folder: target; its parent folders are made.
      loaded: the parts to write.
      dtype: of the stored weights: float32, bfloat16 or float16.

    Raises:
      UserError: unknown dtype, parameters that do not fit their configuration or exceed the
        dtype's range, or no room; the old folder is then untouched.
    """
    folder = any_path(folder)
    if dtype not in DTYPES:
        raise UserError(f'dtype {dtype!r} is unknown; choose one of {", ".join(DTYPES)}')
    problems = []
    for part, config, params in _weights(loaded):
        shapes = flat_shapes(part_shapes(config)), flat_shapes(params)
        problems += [f'{part}: {line}' for line in name_problems(*shapes)]
    if problems:
        raise UserError(f'not saved to {folder}: ' + '; '.join(problems))
    with replacing(folder) as temporary:
        for part, _, params in _weights(loaded):
            write_part(temporary, part, params, dtype)
        if loaded.configs.text is not None:
            text_folder = temporary / 'text_encoder'
            text_folder.mkdir()
            text_params = required(loaded.text_params, 'text encoder')
            save_encoder(text_folder, loaded.configs.text, text_params, jnp.dtype(dtype))
            if loaded.text_tokenizer is not None:
                loaded.text_tokenizer.save(text_folder)
        trained_with = kept_by(dtype, loaded.configs.trained_with)
        write_description(temporary, dataclasses.replace(loaded.configs, trained_with=trained_with))


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which replaces `folder` once it is complete on disk.

    Raises:
      UserError: no room, or not writable; an old folder is then untouched.
    """
    try:
        with local_output(folder, lambda name: True) as place, atomic_folder(place) as temporary:
            yield temporary
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f'{folder}: could not be saved ({error}); the old one is kept') from None


def _weights(loaded: LoadedModel) -> list[tuple[str, Any, Params]]:
    """(part, config, params) of the parts that are present and stored under our own names."""
    parts = [
        ('transformer', loaded.configs.transformer, loaded.transformer_params),
        ('tokenizer', loaded.configs.tokenizer, loaded.tokenizer_params),
    ]
    return [(name, c, p) for name, c, p in parts if c is not None and p is not None]


def write_description(folder: Path, configs: ModelConfigs) -> None:
    """Writes config.json, the description of the folder's weights; the text encoder comes first."""
    described: dict[str, Any] = {'format': FORMAT, 'version': VERSION}
    for part, config in (
        ('transformer', configs.transformer),
        ('tokenizer', configs.tokenizer),
        ('schedule', configs.schedule),
    ):
        if config is not None:
            described[part] = dataclasses.asdict(config)
    if configs.source:
        described['source'] = dict(configs.source)
    if configs.trained_with:
        described['trained_with'] = configs.trained_with
    described['extra'] = dict(configs.extra)
    if hashes := file_hashes(folder):
        described[ENTRY] = hashes
    text = json.dumps(described, indent=2)
    (folder / 'config.json').write_text(text + '\n', encoding='utf-8')


def read_configs(folder: str | os.PathLike[str]) -> ModelConfigs:
    """Reads the configurations of a model folder's parts, without weights.

    Raises:
      UserError: not a model folder, an unknown field, or parts that do not fit each other.
    """
    folder, described = read_description(folder)
    parts: dict[str, Any] = {}
    for name in ('source', 'extra'):
        parts[name] = described.get(name, {})
        if not isinstance(parts[name], dict):
            raise UserError(
                f'{folder}/config.json: {name} is {parts[name]!r:.60}; wanted an object'
            )
    for part, config_type in (
        ('transformer', TransformerConfig),
        ('tokenizer', TokenizerConfig),
        ('schedule', ScaleSchedule),
    ):
        if part in described:
            try:
                parts[part] = stored_config(config_type, described[part], part)
            except UserError as error:
                raise UserError(f'{folder}/config.json: {error}') from None
    parts['trained_with'] = described.get('trained_with', '')
    if not isinstance(parts['trained_with'], str):
        raise UserError(f'{folder}/config.json: trained_with is no text; wanted a fingerprint')
    if (folder / 'text_encoder').is_dir():
        parts['text'] = read_text_config(folder / 'text_encoder')
    configs = ModelConfigs(**parts)
    if problems := configs.problems():
        raise UserError(f'{folder}: ' + '; '.join(problems))
    return configs


def stored_config(config_type: type[Config], fields: Any, where: str) -> Config:
    """A configuration that this package wrote, in which no field may be missing.

    A field that got lost must not become its default: the weights would load, and the model would
    be another one.

    Args:
      config_type: a dataclass.
      fields: the parsed JSON.
      where: name of the part, for messages.

    Raises:
      UserError: a field is missing, unknown or mistyped.
    """
    known = [field.name for field in dataclasses.fields(config_type)]  # type: ignore[arg-type]
    if isinstance(fields, Mapping):
        given = {current_field(name, known, STORED) for name in fields}
        missing = [name for name in known if name not in given and name not in LATER_FIELDS]
        if missing:
            raise UserError(
                f'{where} lacks {", ".join(missing)}, with which it was saved; copy the original '
                'file there again'
            )
    return from_mapping(config_type, fields, where, stored=True)


def load_model(
    folder: str | os.PathLike[str],
    dtype: Any = np.float32,
    parts: Iterable[str] = PARTS,
    mesh: Mesh | None = None,
    configs: ModelConfigs | None = None,
    *,
    verify: bool = True,
) -> LoadedModel:
    """Reads a model folder.

    Args:
      folder: as written by `save_model`.
      dtype: of the returned arrays; None keeps the stored one.
      parts: those of transformer, tokenizer and text_encoder to read, if they are present.
      mesh: weights stream tensor by tensor into their shards on it; None returns numpy arrays.
      configs: those of the folder, if they were read already.
      verify: whether tensors are compared with their hashes, which older folders lack, NaN,
        infinity and kernels of zeros are refused, and the tokenizer is compared with the one that
        the transformer was trained with.

    Raises:
      UserError: no such model, an unknown configuration field, or weights missing, unknown or
        misshapen: all of these at once; or a damaged tensor.
    """
    folder = existing_folder(folder)
    configs = configs or read_configs(folder)
    problems: list[str] = []
    weights: dict[str, Any] = {}
    for part, config in (('transformer', configs.transformer), ('tokenizer', configs.tokenizer)):
        if part in parts and config is not None:
            weights[f'{part}_params'] = read_part(
                folder, part, config, problems, dtype, mesh, verify
            )
    text_folder = folder / 'text_encoder'
    if 'text_encoder' in parts and text_folder.is_dir():
        if verify:
            problems += file_problems(folder, read_description(folder)[1])
        try:
            _, weights['text_params'] = load_encoder(
                text_folder, dtype, mesh, configs.text, verify=verify
            )
        except UserError as error:
            problems.append(str(error))
        if any((text_folder / name).is_file() for name in ('tokenizer.json', 'spiece.model')):
            weights['text_tokenizer'] = TextTokenizer.from_folder(text_folder)
    if problems:
        raise UserError(f'{folder}: ' + '; '.join(problems))
    if verify and configs.transformer and configs.trained_with and weights.get('tokenizer_params'):
        _check_partner(folder, configs, weights['tokenizer_params'])
    return LoadedModel(configs, **weights)


def _check_partner(folder: Path, configs: ModelConfigs, tokenizer: Params) -> None:
    """Raises `UserError` unless the tokenizer is the one that the transformer was trained with."""
    seen = partner_fingerprint(required(configs.tokenizer, 'tokenizer'), tokenizer)
    if seen != configs.trained_with:
        raise UserError(
            f'{folder}: its tokenizer has the fingerprint {seen}, but the transformer was trained '
            f'with {configs.trained_with}: these two do not belong together; copy the whole folder '
            'again'
        )


def conversion(files: Iterable[str]) -> str:
    """A sentence with the command that makes a model folder of released files."""
    files = list(files)
    tokenizers = [name for name in files if re.search('vae|tokenizer', name)]
    others = [name for name in files if name not in tokenizers]
    named = (
        f'--transformer {others[0] if others else "FILE"} '
        f'--tokenizer {tokenizers[0] if tokenizers else "FILE"}'
    )
    return f'Make one: infinity-jax convert from-torch {named} --text-encoder FOLDER --out FOLDER'


def existing_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder itself, or its backup where a save was cut off between its two renames.

    A folder of a store (s3://…) is copied to this machine first.
    """
    folder = local_copy(folder)
    previous = previous_folder(folder)
    # os.path: False too for what cannot be a path
    return previous if not os.path.exists(folder) and os.path.exists(previous) else folder


def read_description(folder: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """The existing folder of a model, and the content of its config.json.

    Raises:
      UserError: no such folder, or no model folder of ours.
    """
    name, folder = folder, existing_folder(folder)
    path = folder / 'config.json'
    if not os.path.isfile(path):
        if os.path.isfile(folder):
            raise UserError(f'{folder}: a file; wanted a model folder. {conversion([folder.name])}')
        lack = 'no config.json there' if os.path.exists(folder) else 'no such folder'
        weights = [p.name for p in sorted(folder.glob('*')) if p.suffix in WEIGHT_ENDINGS]
        advice = f'. {conversion(weights)}' if weights else ''
        raise UserError(f'{folder}: {lack}; wanted a model folder of {FORMAT}{advice}')
    described = read_json(path)
    check_description(name, described)
    return folder, described


def check_description(name: str | os.PathLike[str], described: Mapping[str, Any]) -> None:
    """Raises `UserError` unless the content of a folder's config.json describes a model of ours.

    Args:
      name: of the folder, as the user wrote it.
      described: the content.
    """
    name = os.fspath(name).rstrip('/')
    if {'task', 'run_dir'} <= described.keys():
        raise UserError(
            f'{name}: a run folder; wanted a model folder: {name}/model, which a run writes at its '
            f'end. Of an unfinished run: infinity-jax convert to-torch --checkpoint {name}'
        )
    if described.get('format') != FORMAT or described.get('version') != VERSION:
        seen = f'{described.get("format")!r} version {described.get("version")!r}'
        raise UserError(
            f'{name}/config.json: describes {seen}; wanted {FORMAT!r} version {VERSION}'
        )
