"""LoRA adapters: saved as one small file, and merged into a model folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax.errors import UserError
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.runtime.remote_copy import local_copy
from infinity_jax.transformer.lora import LoraConfig, merge
from infinity_jax.weights.model_folder import load_model, save_model, stored_config
from infinity_jax.weights.safetensors_writer import SafetensorsWriter, Spec
from infinity_jax.weights.weight_files import open_safetensors

FILE_NAME = 'adapter.safetensors'
FORMAT = 'infinity_jax lora'


def save_adapter(path: Path, adapters: Any, config: LoraConfig) -> None:
    """Writes adapters, float32, with the configuration that merging needs.

    Raises:
      UserError: the file cannot be written; an existing one is then untouched.
    """
    arrays = {n: np.asarray(a) for n, a in flatten_dict(adapters, sep='.').items()}
    described = {'rank': config.rank, 'alpha': config.alpha, 'matrices': list(config.targets)}
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
    """Reads a file of `save_adapter`; compares its hashes and refuses NaN and infinity.

    Raises:
      UserError: no such file, not one of ours, or damaged.
    """
    path = local_copy(path)
    try:
        with safetensors.safe_open(path, 'numpy') as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f'{path}: cannot be read ({error}); name a {FILE_NAME} of a run') from None
    if metadata.get('format') != FORMAT:
        raise UserError(f'{path}: holds no adapters; name a {FILE_NAME} of a run')
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


def check_fit(transformer: Any, adapters: Any, config: LoraConfig, name: str) -> None:
    """Raises `UserError`, which names the adapter file, unless A B has the shape of each kernel."""
    kernels, flat = flatten_dict(transformer, sep='.'), flatten_dict(adapters, sep='.')
    names = {f'{matrix}.{half}' for matrix in config.targets for half in 'ab'}
    if set(flat) != names:
        raise UserError(f'{name}: has {", ".join(sorted(flat))}; wanted {", ".join(sorted(names))}')
    for matrix in config.targets:
        layers, inputs, outputs = kernels[f'blocks.{matrix}.kernel'].shape
        shapes = flat[f'{matrix}.a'].shape, flat[f'{matrix}.b'].shape
        fitting = (layers, inputs, config.rank), (layers, config.rank, outputs)
        if shapes != fitting:
            raise UserError(
                f'{name}: {matrix} has A, B of shapes {shapes}, the model wants {fitting}; name '
                'the model that the adapters were trained on'
            )


def merge_into_folder(
    checkpoint: str | Path, adapter: str | Path, out: str | Path, dtype: str = 'float32'
) -> None:
    """Writes the model folder `checkpoint` with the adapters merged in as folder `out`.

    Args:
      dtype: of the stored weights. With float32 the images are those of model and adapters; 16
        bits round the sum.

    Raises:
      UserError: model or adapters are missing, or they do not fit.
    """
    config, adapters = load_adapter(adapter)
    loaded = load_model(checkpoint)
    if loaded.transformer_params is None:
        raise UserError(f'{checkpoint}: holds no transformer to merge adapters into')
    check_fit(loaded.transformer_params, adapters, config, str(adapter))
    merged = merge(loaded.transformer_params, adapters, config)
    save_model(out, dataclasses.replace(loaded, transformer_params=merged), dtype)
