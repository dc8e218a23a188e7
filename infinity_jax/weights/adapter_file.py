"""LoRA adapters in a file: saved, read, fitted to a model, and merged into a model folder."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax.config import TransformerConfig, required
from infinity_jax.errors import UserError
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.runtime.remote_copy import local_copy
from infinity_jax.transformer.lora import LoraConfig, Updates, merge, summed, updates_of
from infinity_jax.transformer.model import transformer_shapes
from infinity_jax.weights.model_folder import load_model, save_model, stored_config
from infinity_jax.weights.peft_adapter import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_peft,
    peft_folder,
)
from infinity_jax.weights.safetensors_writer import SafetensorsWriter, Spec
from infinity_jax.weights.weight_files import open_safetensors

FILE_NAME = 'adapter.safetensors'
FORMAT = 'infinity_jax lora'


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Adapters to apply.

    Attributes:
      path: adapter.safetensors of a run, the run's folder, or a folder in PEFT's layout.
      strength: factor of the update; 1: as trained, 0: none.
    """

    path: str
    strength: float = 1.0

    def __post_init__(self):
        if not math.isfinite(self.strength):
            raise UserError(f'{self.path}: strength is {self.strength}; wanted a finite number')

    @classmethod
    def parse(cls, adapter: Union[str, os.PathLike[str], 'Adapter']) -> 'Adapter':
        """'PATH' or 'PATH:STRENGTH', such as 'runs/cats/adapter.safetensors:0.8'.

        A text that is a path of this machine as it is, such as 'runs/12:30', has no strength.
        """
        if isinstance(adapter, Adapter):
            return adapter
        text = os.fspath(adapter)
        if os.path.exists(text):
            return cls(text)
        path, _, strength = text.rpartition(':')
        try:
            factor = float(strength)
        except ValueError:
            return cls(text)
        return cls(path, factor) if path else cls(text)


def save_adapter(path: Path, adapters: Any, config: LoraConfig) -> None:
    """Writes adapters, float32, with the configuration that applying them needs.

    Raises:
      UserError: the file cannot be written; an existing one is then untouched.
    """
    arrays = {n: np.asarray(a) for n, a in flatten_dict(adapters, sep='.').items()}
    described = {**dataclasses.asdict(config), 'matrices': list(config.targets)}
    metadata = {'format': FORMAT, 'lora': json.dumps(described)}
    try:
        with atomic_file(path) as temporary:
            specs = {name: Spec(array.shape, array.dtype) for name, array in arrays.items()}
            with SafetensorsWriter(temporary, specs, metadata) as writer:
                for name, array in arrays.items():
                    writer.write(name, array)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f'{path}: could not be saved ({error}); free space, then again') from None


def load_adapter(path: str | Path) -> tuple[LoraConfig, Any]:
    """Reads adapters; compares the hashes of ours and refuses NaN and infinity.

    Args:
      path: a file of `save_adapter`, a folder that has one, or a folder in PEFT's layout.

    Raises:
      UserError: no such file, no adapters, or damaged.
    """
    path = local_copy(path, lambda name: name in ('', FILE_NAME, CONFIG_NAME, WEIGHTS_NAME))
    if os.path.isfile(path / FILE_NAME):
        path = path / FILE_NAME
    elif folder := peft_folder(path):
        return load_peft(folder)
    elif os.path.isdir(path):
        raise UserError(
            f'{path}: holds neither {FILE_NAME} nor adapter_config.json of PEFT; name a folder or '
            'file with adapters'
        )
    try:
        with safetensors.safe_open(path, 'numpy') as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f'{path}: cannot be read ({error}); name the {FILE_NAME} of a run'
        ) from None
    if metadata.get('format') != FORMAT:
        raise UserError(f'{path}: holds no adapters; name the {FILE_NAME} of a run')
    try:
        described = dict(json.loads(metadata['lora']))
    except (KeyError, TypeError, ValueError):
        raise UserError(f'{path}: its header is damaged; copy it again') from None
    try:
        config = stored_config(LoraConfig, described, 'lora')
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    tensors = open_safetensors(path, refuse_values=True)
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    return config, unflatten_dict(arrays, sep='.')


def read_updates(
    adapters: Sequence[str | os.PathLike[str] | Adapter], transformer: TransformerConfig
) -> Updates:
    """The sum of several adapters' updates, each with its strength.

    Args:
      adapters: see `Adapter.parse`.
      transformer: sizes of the model that they are for.

    Raises:
      UserError: adapters are missing or damaged, or have other sizes than the model.
    """
    updates = []
    for adapter in map(Adapter.parse, adapters):
        config, arrays = load_adapter(adapter.path)
        check_adapter(transformer, arrays, config, adapter.path)
        updates.append(updates_of(arrays, config, adapter.strength))
    return summed(updates)


def check_adapter(
    transformer: TransformerConfig, adapters: Any, config: LoraConfig, name: str
) -> None:
    """Raises `UserError`, which names the adapter file, unless A B has the shape of each kernel."""
    kernels = flatten_dict(transformer_shapes(transformer), sep='.')
    flat = flatten_dict(adapters, sep='.')
    if not config.rank:
        raise UserError(f'{name}: lora.rank is 0; wanted 1 or more: copy the file again')
    names = {f'{matrix}.{half}' for matrix in config.targets for half in 'ab'}
    if set(flat) != names:
        raise UserError(f'{name}: has {", ".join(sorted(flat))}; wanted {", ".join(sorted(names))}')
    for matrix in config.targets:
        layers, inputs, outputs = kernels[f'blocks.{matrix}.kernel'].shape
        shapes = flat[f'{matrix}.a'].shape, flat[f'{matrix}.b'].shape
        fitting = (layers, inputs, config.rank), (layers, config.rank, outputs)
        if shapes == fitting:
            continue
        found = f'{name}: {matrix} has A, B of shapes {shapes}'
        ranks = shapes[0][-1:], shapes[1][-2:-1]
        if ranks != ((config.rank,), (config.rank,)):
            raise UserError(f'{found}, but lora.rank is {config.rank}: copy the file again')
        raise UserError(
            f'{found}, the model wants {fitting}; name the model that the adapters were trained on'
        )


def merge_into_folder(
    checkpoint: str | Path,
    adapters: Sequence[str | os.PathLike[str] | Adapter],
    out: str | Path,
    dtype: str = 'float32',
) -> None:
    """Writes the model folder `checkpoint` with adapters merged in as folder `out`.

    Args:
      adapters: one or several, see `Adapter.parse`.
      dtype: of the stored weights. With float32 the images are those of model and adapters; 16
        bits round the sum.

    Raises:
      UserError: model or adapters are missing, or they do not fit.
    """
    loaded = load_model(checkpoint)
    if loaded.transformer_params is None:
        raise UserError(f'{checkpoint}: holds no transformer to merge adapters into')
    updates = read_updates(adapters, required(loaded.configs.transformer, 'transformer'))
    merged = merge(loaded.transformer_params, updates)
    save_model(out, dataclasses.replace(loaded, transformer_params=merged), dtype)
