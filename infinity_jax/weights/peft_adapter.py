"""LoRA adapters in the layout of PEFT, for the module names of the released PyTorch model.

A folder has adapter_config.json and adapter_model.safetensors, in which every layer has its own
tensors `base_model.model.BLOCK.MODULE.lora_A.weight` (rank, in) and `lora_B.weight` (out, rank).
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax.errors import UserError
from infinity_jax.ranges import Range, real, short
from infinity_jax.runtime.atomic_write import atomic_folder
from infinity_jax.transformer.lora import LARGEST_ALPHA, LARGEST_RANK, LoraConfig
from infinity_jax.weights.safetensors_writer import SafetensorsWriter, Spec
from infinity_jax.weights.weight_files import open_safetensors, read_json

CONFIG_NAME, WEIGHTS_NAME = 'adapter_config.json', 'adapter_model.safetensors'
PREFIX = 'base_model.model.'
# Module of a block of the released model -> our matrix.
MODULES = {
    'sa.mat_qkv': 'self_attention.qkv',
    'sa.proj': 'self_attention.out',
    'ca.mat_q': 'cross_attention.query',
    'ca.mat_kv': 'cross_attention.key_value',
    'ca.proj': 'cross_attention.out',
    'ffn.fc1': 'ffn.up',
    'ffn.fc2': 'ffn.down',
}
HALVES = {'lora_A': 'a', 'lora_B': 'b'}
TENSOR = re.compile(
    r'(?:block_chunks\.(?P<chunk>\d+)\.module|blocks)\.(?P<index>\d+)\.(?P<module>[\w.]+)'
    r'\.(?P<half>lora_[AB])\.weight'
)
# Field of adapter_config.json -> the only values that we can apply.
REQUIRED: dict[str, tuple[Any, ...]] = {
    'peft_type': ('LORA',),
    'use_dora': (False, None),
    'fan_in_fan_out': (False, None),
    'bias': ('none', None),
    'modules_to_save': (None, []),
    'rank_pattern': ({}, None),
    'alpha_pattern': ({}, None),
    'layers_to_transform': (None, []),
    'layer_replication': (None, []),
    'target_parameters': (None, []),
    'alora_invocation_tokens': (None, []),
    'lora_bias': (False, None),
    'use_qalora': (False, None),
    'use_bdlora': (False, None, {}),
    # Others, such as 'pissa', change the base model's weights as well.
    'init_lora_weights': (True, False, None, 'gaussian', 'eva', 'orthogonal'),
}


def peft_folder(path: Path) -> Path | None:
    """The folder in PEFT's layout that a path names, itself or by one of its files; else None."""
    folder = path.parent if path.name in (CONFIG_NAME, WEIGHTS_NAME) else path
    return folder if (folder / CONFIG_NAME).is_file() else None


def load_peft(folder: Path) -> tuple[LoraConfig, Any]:
    """Reads a folder in PEFT's layout; returns the configuration and adapters of `init_adapters`.

    Raises:
      UserError: a file is missing or damaged, the two do not belong together, the adapters are of
        another kind than plain LoRA, or of other modules than the seven matrices of the blocks.
    """
    rank, alpha = _settings(folder)
    path = folder / WEIGHTS_NAME
    if not os.path.exists(path):
        raise UserError(
            f'{path}: no such file; copy it next to {CONFIG_NAME}, or, where there is '
            'adapter_model.bin alone, save the adapters again with save_pretrained(FOLDER, '
            'safe_serialization=True)'
        )
    found: dict[str, dict[tuple[int, int], np.ndarray]] = {}
    for name, tensor in open_safetensors(path).items():
        match = TENSOR.fullmatch(name.removeprefix(PREFIX))
        if not match or match['module'] not in MODULES:
            raise UserError(
                f'{path}: {name} is not an adapter of a matrix that can have one here; wanted '
                f'{", ".join(MODULES)} of the blocks'
            )
        array = np.asarray(tensor.read(), np.float32)
        if array.ndim != 2 or not np.isfinite(array).all():
            raise UserError(
                f'{path}: {name} of shape {array.shape} has NaN, infinity or not two axes; copy '
                'the file again'
            )
        position = int(match['chunk'] or 0), int(match['index'])
        ours = f'{MODULES[match["module"]]}.{HALVES[match["half"]]}'
        found.setdefault(ours, {})[position] = array.T
    if not found:
        raise UserError(f'{path}: holds no adapters; copy the file again')
    matrices = tuple({name.rpartition('.')[0]: None for name in found})
    depth = {position for layers in found.values() for position in layers}
    stacked = {name: _stacked(path, name, layers, depth) for name, layers in found.items()}
    for name, array in stacked.items():
        stored = array.shape[2 if name.endswith('.a') else 1]
        if stored != rank:
            raise UserError(
                f'{path}: {name} has rank {stored}, but r is {rank} in {CONFIG_NAME}; wanted the '
                'same: copy both files again from one folder that PEFT saved'
            )
    return LoraConfig(rank, alpha, matrices), unflatten_dict(stacked, sep='.')


def _settings(folder: Path) -> tuple[int, float]:
    """Rank and alpha of adapter_config.json, once all its fields can be applied."""
    path = folder / CONFIG_NAME
    described = read_json(path)
    for field, known in REQUIRED.items():
        value = described.get(field, known[0])
        if value not in known or (field == 'peft_type' and field not in described):
            raise UserError(
                f'{path}: {field} is {described.get(field)!r:.60}; wanted {known[0]!r}: only plain '
                'LoRA with one rank can be applied'
            )
    rank: Any = described.get('r')
    alpha: Any = described.get('lora_alpha')
    ranks = Range(1, LARGEST_RANK)
    if not ranks.has(rank):
        raise UserError(f'{path}: r is {short(rank)}; wanted {ranks}: copy the file again')
    # Rank-stabilised LoRA divides by √r where `LoraConfig.scale` divides by r.
    factor = rank**0.5 if described.get('use_rslora') else 1.0
    alphas = real(0, LARGEST_ALPHA / factor)
    if not alphas.has(alpha):
        raise UserError(
            f'{path}: lora_alpha is {short(alpha)}; wanted a number from {alphas}: copy the file '
            'again'
        )
    return rank, alpha * factor


def _stacked(
    path: Path, name: str, layers: dict[tuple[int, int], np.ndarray], depth: set[tuple[int, int]]
) -> np.ndarray:
    """The arrays of all layers as one, in the order of the blocks."""
    chunks = 1 + max(chunk for chunk, _ in depth)
    per_chunk = 1 + max(index for _, index in depth)
    order = [(chunk, index) for chunk in range(chunks) for index in range(per_chunk)]
    if missing := [position for position in order if position not in layers]:
        chunk, index = missing[0]
        raise UserError(
            f'{path}: {name} lacks {len(missing)} of {len(order)} blocks, the first is '
            f'{chunk * per_chunk + index}; wanted adapters of all blocks'
        )
    shapes = {array.shape for array in layers.values()}
    if len(shapes) > 1:
        raise UserError(f'{path}: {name} has shapes {sorted(shapes)}; wanted one for all blocks')
    return np.stack([layers[position] for position in order])


def save_peft(
    folder: Path, adapters: Any, config: LoraConfig, *, base: str = '', chunks: int = 1
) -> None:
    """Writes adapters as a folder in PEFT's layout.

    Args:
      folder: is replaced.
      adapters: as `load_adapter` returns them.
      config: of the adapters.
      base: name of the PyTorch model, for the field base_model_name_or_path.
      chunks: in the names of its blocks, see `Naming`.

    Raises:
      UserError: the folder cannot be written.
    """
    flat = flatten_dict(adapters, sep='.')
    torch_names = {ours: torch for torch, ours in MODULES.items()}
    arrays = {}
    for matrix in config.targets:
        for half, ours in HALVES.items():
            stack = np.asarray(flat[f'{matrix}.{ours}'], np.float32)
            for layer, array in enumerate(stack):
                block = f'blocks.{layer}'
                if chunks > 1:
                    chunk, index = divmod(layer, len(stack) // chunks)
                    block = f'block_chunks.{chunk}.module.{index}'
                name = f'{PREFIX}{block}.{torch_names[matrix]}.{half}.weight'
                arrays[name] = np.ascontiguousarray(array.T)
    specs = {name: Spec(array.shape, array.dtype) for name, array in arrays.items()}
    modules = [torch_names[matrix] for matrix in config.targets]
    try:
        with atomic_folder(folder) as temporary:
            path = temporary / WEIGHTS_NAME
            with SafetensorsWriter(path, specs, {'format': 'pt'}) as writer:
                for name, array in arrays.items():
                    writer.write(name, array)
            text = json.dumps(_description(config, modules, base), indent=2)
            (temporary / CONFIG_NAME).write_text(text + '\n', encoding='utf-8')
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f'{folder}: could not be saved ({error}); the old one is kept') from None


def _description(config: LoraConfig, modules: list[str], base: str) -> dict[str, Any]:
    """The content of adapter_config.json."""
    # A pattern of whole names: the text pooling of the model has modules with the same last names.
    escaped = '|'.join(re.escape(module) for module in modules)
    whole = config.alpha == int(config.alpha)
    return {
        'peft_type': 'LORA',
        'task_type': None,
        'base_model_name_or_path': base,
        'r': config.rank,
        'lora_alpha': int(config.alpha) if whole else config.alpha,
        'lora_dropout': 0.0,
        'target_modules': rf'(?:block_chunks\.\d+\.module|blocks)\.\d+\.(?:{escaped})',
        'bias': 'none',
        'fan_in_fan_out': False,
        'use_rslora': False,
        'use_dora': False,
        'modules_to_save': None,
        'rank_pattern': {},
        'alpha_pattern': {},
        'layers_to_transform': None,
        'layers_pattern': None,
        'init_lora_weights': True,
        'inference_mode': True,
    }
