"""A model as one self-describing folder: what is needed to draw, or to go on training.

    config.json               dimensions, schedule, and whatever the maker wishes to remember
    transformer.safetensors   our parameter paths joined by dots, layers stacked
    tokenizer.safetensors
    text_encoder/             a Hugging Face folder: config.json, model.safetensors, tokenizer.json

Any part may be absent. A folder is written beside its target and renamed into place, so that an
interrupted save never harms the last good one.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax.config import (
    TextConfig,
    TokenizerConfig,
    TransformerConfig,
    UserError,
    from_mapping,
)
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text import TextTokenizer, load_encoder, save_encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.transformer.model import Transformer
from infinity_jax.weight_files import name_problems, open_safetensors, read_json

Params = dict[str, Any]

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
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # JSON, kept as it is


def transformer_shapes(config: TransformerConfig) -> Params:
    """The transformer's parameter tree as `ShapeDtypeStruct`s, without boxes."""
    schedule = ScaleSchedule.free(((1, 1), (1, 1)))
    text = jax.ShapeDtypeStruct((1, 1, config.text_channels), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    inputs = jax.ShapeDtypeStruct((1, 1, config.token_bits), jnp.float32)

    def init(text, lengths, inputs):
        return Transformer(config).init(jax.random.key(0), text, lengths, inputs, schedule)

    return nn.unbox(jax.eval_shape(init, text, lengths, inputs))['params']


def tokenizer_shapes(config: TokenizerConfig) -> Params:
    """The tokenizer's parameter tree as `ShapeDtypeStruct`s, without boxes."""
    pixels = jax.ShapeDtypeStruct((1, config.stride, config.stride, 3), jnp.float32)
    boxed = jax.eval_shape(Autoencoder(config).init, jax.random.key(0), pixels)
    return nn.unbox(boxed)['params']


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
        wanted = flatten_dict(_shapes(part, config), sep='.')
        found = flatten_dict(params, sep='.')
        problems += [f'{part}: {p}' for p in name_problems(_shape_of(wanted), _shape_of(found))]
    if problems:
        raise UserError(f'not saved to {folder}: ' + '; '.join(problems))
    temporary = folder.with_name(f'.{folder.name}.saving-{os.getpid()}')
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(temporary, bundle, dtype)
        _replace(folder, temporary)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f'{folder}: could not be saved ({error}); the old one is kept') from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _weights(bundle: ModelBundle) -> list[tuple[str, Any, Params]]:
    """(part, config, params) of the parts that are there and kept in our own names."""
    parts = [
        ('transformer', bundle.transformer_config, bundle.transformer_params),
        ('tokenizer', bundle.tokenizer_config, bundle.tokenizer_params),
    ]
    return [(name, c, p) for name, c, p in parts if c is not None and p is not None]


def _shapes(part: str, config: Any) -> Params:
    return transformer_shapes(config) if part == 'transformer' else tokenizer_shapes(config)


def _shape_of(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


def _write(folder: Path, bundle: ModelBundle, dtype: str) -> None:
    described: dict[str, Any] = {'format': FORMAT, 'version': VERSION}
    for part, config, params in _weights(bundle):
        described[part] = dataclasses.asdict(config)
        arrays = {n: _cast(n, a, dtype) for n, a in flatten_dict(params, sep='.').items()}
        safetensors.numpy.save_file(arrays, folder / f'{part}.safetensors')
    if bundle.schedule is not None:
        described['schedule'] = dataclasses.asdict(bundle.schedule)
    described['extra'] = bundle.extra
    if bundle.text_config is not None:
        text_folder = folder / 'text_encoder'
        text_folder.mkdir()
        save_encoder(text_folder, bundle.text_config, bundle.text_params, jnp.dtype(dtype))
        if bundle.text_tokenizer is not None:
            bundle.text_tokenizer.save(text_folder)
    text = json.dumps(described, indent=2)
    (folder / 'config.json').write_text(text + '\n', encoding='utf-8')
    for path in folder.rglob('*'):  # on disk before the rename, or a power cut loses both
        if path.is_file():
            with open(path, 'rb') as file:
                os.fsync(file.fileno())


def _cast(name: str, leaf: Any, dtype: str) -> np.ndarray:
    array = np.asarray(leaf)
    with np.errstate(over='ignore'):
        cast = np.ascontiguousarray(array.astype(jnp.dtype(dtype)))
    if np.isfinite(array).all() and not np.isfinite(cast).all():
        raise UserError(
            f'{name} reaches {np.abs(array).max():g}, beyond {dtype}; save as bfloat16 or float32'
        )
    return cast


def _backup(folder: Path) -> Path:
    return folder.with_name(f'.{folder.name}.previous')


def _replace(folder: Path, new: Path) -> None:
    """Renames `new` to `folder`; at every moment the old or the new one is whole on disk."""
    backup = _backup(folder)
    if folder.exists():
        shutil.rmtree(backup, ignore_errors=True)
        os.rename(folder, backup)
    os.rename(new, folder)
    shutil.rmtree(backup, ignore_errors=True)


def load_model(
    folder: str | Path, dtype: Any = np.float32, parts: Iterable[str] = PARTS
) -> ModelBundle:
    """Reads a model folder.

    Args:
      folder: as written by `save_model`.
      dtype: of the returned numpy arrays; None keeps the stored one.
      parts: which of transformer, tokenizer and text_encoder to read, where they are there.

    Raises:
      UserError: no such model, an unknown configuration field, or weights missing, unknown or
        misshapen: all of these at once.
    """
    folder = Path(folder)
    if not folder.exists() and _backup(folder).exists():
        folder = _backup(folder)  # a save was cut off between its two renames
    described = _read_description(folder)
    parts = tuple(parts)
    bundle = ModelBundle(extra=described.get('extra', {}))
    if described.get('schedule') is not None:
        bundle.schedule = from_mapping(ScaleSchedule, described['schedule'], 'schedule')
    problems: list[str] = []
    if 'transformer' in parts and 'transformer' in described:
        config = from_mapping(TransformerConfig, described['transformer'], 'transformer')
        bundle.transformer_config = config
        bundle.transformer_params = _load(folder, 'transformer', config, dtype, problems)
    if 'tokenizer' in parts and 'tokenizer' in described:
        config = from_mapping(TokenizerConfig, described['tokenizer'], 'tokenizer')
        bundle.tokenizer_config = config
        bundle.tokenizer_params = _load(folder, 'tokenizer', config, dtype, problems)
    text_folder = folder / 'text_encoder'
    if 'text_encoder' in parts and text_folder.is_dir():
        try:
            bundle.text_config, bundle.text_params = load_encoder(text_folder, dtype)
        except UserError as error:
            problems.append(str(error))
        if (text_folder / 'tokenizer.json').is_file():
            bundle.text_tokenizer = TextTokenizer.from_folder(text_folder)
    problems += pairing_problems(bundle)
    if problems:
        raise UserError(f'{folder}: ' + '; '.join(problems))
    return bundle


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / 'config.json'
    if not path.is_file():
        raise UserError(f'{folder}: no config.json there; wanted a model folder of {FORMAT}')
    described = read_json(path)
    if described.get('format') != FORMAT or described.get('version') != VERSION:
        seen = f'{described.get("format")!r} version {described.get("version")!r}'
        raise UserError(f'{path}: describes {seen}; wanted {FORMAT!r} version {VERSION}')
    return described


def _load(folder: Path, part: str, config: Any, dtype: Any, problems: list[str]) -> Params | None:
    """Reads one part's weights, or adds to `problems` all that is wrong with them."""
    path = folder / f'{part}.safetensors'
    if not path.is_file():
        problems.append(f'{path.name} is missing')
        return None
    tensors = open_safetensors(path)
    wanted = flatten_dict(_shapes(part, config), sep='.')
    wrong = name_problems(_shape_of(wanted), _shape_of(tensors))
    if wrong:
        problems += [f'{path.name}: {p}' for p in wrong]
        return None
    arrays = {}
    for name in wanted:
        array = tensors[name].read()
        arrays[name] = array if dtype is None else array.astype(dtype, copy=False)
    return unflatten_dict(arrays, sep='.')


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
