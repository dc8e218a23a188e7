"""A model as one self-describing folder: what is needed to draw, or to go on training.

    config.json               dimensions, schedule, and whatever the maker wishes to remember
    transformer.safetensors   our parameter paths joined by dots, layers stacked; above 5 GB in
                              shards with an index
    tokenizer.safetensors
    text_encoder/             a Hugging Face folder: config.json, model.safetensors, tokenizer.json

Any part may be absent. A folder is written beside its target and renamed into place, so that an
interrupted save never harms the last good one.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from jax.sharding import Mesh

from infinity_jax.config import TextConfig, TokenizerConfig, TransformerConfig, from_mapping
from infinity_jax.errors import UserError
from infinity_jax.runtime.atomic_write import atomic_folder, previous_folder
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.weights.part_weights import (
    Params,
    flat_shapes,
    part_shapes,
    read_part,
    write_part,
)
from infinity_jax.weights.t5_folder import load_encoder, save_encoder
from infinity_jax.weights.weight_files import name_problems, read_json

FORMAT = 'infinity_jax'
VERSION = 1
PARTS = ('transformer', 'tokenizer', 'text_encoder')
DTYPES = ('float32', 'bfloat16', 'float16')


@dataclasses.dataclass
class ModelBundle:
    """The parts of a model. Absent parts are None."""

    transformer_config: TransformerConfig | None = None
    transformer_params: Params | None = None
    tokenizer_config: TokenizerConfig | None = None
    tokenizer_params: Params | None = None
    text_config: TextConfig | None = None
    text_params: Params | None = None
    text_tokenizer: TextTokenizer | None = None
    schedule: ScaleSchedule | None = None  # token grids; a tokenizer alone has its code grids here
    source: dict[str, Any] = dataclasses.field(default_factory=dict)  # how torch files named it
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # JSON, kept as it is


def save_model(folder: str | Path, bundle: ModelBundle, dtype: str = 'float32') -> None:
    """Writes a model folder, replacing one that is there.

    Args:
      folder: target; its parent is made.
      bundle: the parts to write.
      dtype: of the stored weights: float32, bfloat16 or float16.

    Raises:
      UserError: unknown dtype, parameters that do not fit their configuration or exceed the
        dtype's range, or no room; the old folder is then untouched.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise UserError(f'dtype {dtype!r} is unknown; choose one of {", ".join(DTYPES)}')
    problems = []
    for part, config, params in _weights(bundle):
        wanted, found = flat_shapes(part_shapes(config)), flat_shapes(params)
        problems += [f'{part}: {line}' for line in name_problems(wanted, found)]
    if problems:
        raise UserError(f'not saved to {folder}: ' + '; '.join(problems))
    with replacing(folder) as temporary:
        for part, _, params in _weights(bundle):
            write_part(temporary, part, params, dtype)
        if bundle.text_config is not None:
            text_folder = temporary / 'text_encoder'
            text_folder.mkdir()
            save_encoder(text_folder, bundle.text_config, bundle.text_params, jnp.dtype(dtype))
            if bundle.text_tokenizer is not None:
                bundle.text_tokenizer.save(text_folder)
        write_description(temporary, bundle)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` once it is whole on disk.

    Raises:
      UserError: no room, or not writable; an old folder is then untouched.
    """
    try:
        with atomic_folder(folder) as temporary:
            yield temporary
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f'{folder}: could not be saved ({error}); the old one is kept') from None


def _weights(bundle: ModelBundle) -> list[tuple[str, Any, Params]]:
    """(part, config, params) of the parts that are there and kept in our own names."""
    parts = [
        ('transformer', bundle.transformer_config, bundle.transformer_params),
        ('tokenizer', bundle.tokenizer_config, bundle.tokenizer_params),
    ]
    return [(name, c, p) for name, c, p in parts if c is not None and p is not None]


def write_description(folder: Path, bundle: ModelBundle) -> None:
    """Leaves config.json, which says what the folder's weights are."""
    described: dict[str, Any] = {'format': FORMAT, 'version': VERSION}
    for part, config in (
        ('transformer', bundle.transformer_config),
        ('tokenizer', bundle.tokenizer_config),
        ('schedule', bundle.schedule),
    ):
        if config is not None:
            described[part] = dataclasses.asdict(config)
    if bundle.source:
        described['source'] = bundle.source
    described['extra'] = bundle.extra
    text = json.dumps(described, indent=2)
    (folder / 'config.json').write_text(text + '\n', encoding='utf-8')


def load_model(
    folder: str | Path,
    dtype: Any = np.float32,
    parts: Iterable[str] = PARTS,
    mesh: Mesh | None = None,
) -> ModelBundle:
    """Reads a model folder.

    Args:
      folder: as written by `save_model`.
      dtype: of the returned arrays; None keeps the stored one.
      parts: which of transformer, tokenizer and text_encoder to read, where they are there.
      mesh: weights stream tensor by tensor into their shards on it; None returns numpy arrays.

    Raises:
      UserError: no such model, an unknown configuration field, or weights missing, unknown or
        misshapen: all of these at once.
    """
    folder, described = read_description(folder)
    parts = tuple(parts)
    bundle = ModelBundle(source=described.get('source', {}), extra=described.get('extra', {}))
    if described.get('schedule') is not None:
        bundle.schedule = from_mapping(
            ScaleSchedule, described['schedule'], 'schedule', stored=True
        )
    problems: list[str] = []
    if 'transformer' in parts and 'transformer' in described:
        config = from_mapping(
            TransformerConfig, described['transformer'], 'transformer', stored=True
        )
        bundle.transformer_config = config
        bundle.transformer_params = read_part(folder, 'transformer', config, problems, dtype, mesh)
    if 'tokenizer' in parts and 'tokenizer' in described:
        config = from_mapping(TokenizerConfig, described['tokenizer'], 'tokenizer', stored=True)
        bundle.tokenizer_config = config
        bundle.tokenizer_params = read_part(folder, 'tokenizer', config, problems, dtype, mesh)
    text_folder = folder / 'text_encoder'
    if 'text_encoder' in parts and text_folder.is_dir():
        try:
            bundle.text_config, bundle.text_params = load_encoder(text_folder, dtype, mesh)
        except UserError as error:
            problems.append(str(error))
        if any((text_folder / name).is_file() for name in ('tokenizer.json', 'spiece.model')):
            bundle.text_tokenizer = TextTokenizer.from_folder(text_folder)
    problems += pairing_problems(bundle)
    if problems:
        raise UserError(f'{folder}: ' + '; '.join(problems))
    return bundle


def read_description(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Where the model of that name lies, and its config.json.

    Raises:
      UserError: there is none, or not one of ours.
    """
    folder = Path(folder)
    if not folder.exists() and previous_folder(folder).exists():
        folder = previous_folder(folder)  # a save was cut off between its two renames
    path = folder / 'config.json'
    if not path.is_file():
        lack = 'no config.json there' if folder.exists() else 'no such folder'
        raise UserError(f'{folder}: {lack}; wanted a model folder of {FORMAT}')
    described = read_json(path)
    if described.get('format') != FORMAT or described.get('version') != VERSION:
        seen = f'{described.get("format")!r} version {described.get("version")!r}'
        raise UserError(f'{path}: describes {seen}; wanted {FORMAT!r} version {VERSION}')
    return folder, described


def pairing_problems(bundle: ModelBundle) -> list[str]:
    """Why these parts cannot work together; a wrong pair would draw garbage silently."""
    transformer, tokenizer, text = (
        bundle.transformer_config,
        bundle.tokenizer_config,
        bundle.text_config,
    )
    problems = []
    if transformer and tokenizer and transformer.bits != tokenizer.bits:
        problems.append(
            f'the transformer predicts codes of {transformer.bits} bits, the tokenizer has '
            f'{tokenizer.bits}; use the tokenizer that the transformer was trained with'
        )
    if transformer and text and transformer.text_channels != text.width:
        problems.append(
            f'the transformer reads text of {transformer.text_channels} channels, the text encoder '
            f'gives {text.width}; use the encoder that it was trained with'
        )
    return problems


DEMO_FOLDER = Path(__file__).parent.parent / 'demo'  # the model that ships with the package
