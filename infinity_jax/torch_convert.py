"""Released PyTorch weights to our parameters and back; torch itself is not needed.

Every dimension is read off the tensors' shapes. What the table in `torch_table` does not know, or
finds missing or misshapen, is one error that lists everything.
"""

import collections
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax import torch_table
from infinity_jax.config import TokenizerConfig, TransformerConfig, UserError
from infinity_jax.model_folder import ModelBundle, tokenizer_shapes, transformer_shapes
from infinity_jax.torch_dimensions import (
    Tensors,
    read_tokenizer_config,
    read_transformer_config,
)
from infinity_jax.torch_table import Entry, Naming
from infinity_jax.weight_files import is_tensor, name_problems, open_weights

Params = dict[str, Any]

TOKEN_STRIDE = 16  # pixels per transformer token along an edge, in every released pair
WRAPPERS = ('module.', '_orig_mod.')  # put before every name by torch's wrappers


def open_transformer(path: str | Path, ema: bool = False) -> Tensors:
    """A transformer's state dict, unread: plain, of a training checkpoint, or in shards.

    Args:
      path: .pth or .safetensors file, or a folder of shards with an index.
      ema: take the moving average of a training checkpoint.
    """
    state = open_weights(path)
    if 'trainer' in state:
        wanted = ('gpt_ema_fsdp', 'gpt_ema_for_vis') if ema else ('gpt_fsdp', 'gpt_wo_ddp')
        return _nested(path, state['trainer'], wanted)
    if ema:
        raise UserError(
            f'{path}: a plain state dict without a moving average; read its weights as they are'
        )
    return _state_dict(path, state)


def open_tokenizer(path: str | Path, ema: bool = False) -> Tensors:
    """A tokenizer's state dict, unread: plain, or under `vae` or `ema`."""
    state = open_weights(path)
    if 'trainer' in state:
        return _nested(path, state['trainer'], ('vae_local',))
    if ema or 'vae' in state or 'ema' in state:
        return _nested(path, state, ('ema',) if ema else ('vae', 'ema'))
    return _state_dict(path, state)


def _nested(path: str | Path, state: Any, names: Iterable[str]) -> Tensors:
    """The first of the named state dicts that is there."""
    if not isinstance(state, Mapping):
        raise UserError(f'{path}: holds a {type(state).__name__} where a state dict should be')
    for name in names:
        if state.get(name):
            return _state_dict(path, state[name])
    raise UserError(f'{path}: has {", ".join(map(str, state))}; wanted {" or ".join(names)}')


def _state_dict(path: str | Path, state: Mapping[str, Any]) -> Tensors:
    others = [str(name) for name, value in state.items() if not is_tensor(value)]
    if others or not state:
        raise UserError(
            f'{path}: wanted a state dict of tensors; not tensors: {", ".join(others) or "(empty)"}'
        )
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return dict(state)


def import_tensors(
    tensors: Tensors,
    wanted: list[Entry],
    buffers: Mapping[str, tuple[str, Any]],
    ignored: Iterable[str] = (),
    dtype: Any = np.float32,
) -> Params:
    """Reads tensors one by one into our tree.

    Raises:
      UserError: every missing, unknown and misshapen name, and buffers that hold what they
        should not, together.
    """
    found = {n: t for n, t in tensors.items() if n not in buffers and n not in ignored}
    problems = name_problems(
        {e.torch: e.shape for e in wanted}, {n: t.shape for n, t in found.items()}
    )
    for name, (beside, make) in buffers.items():
        if name in tensors and beside in found:
            constant = make(found[beside].read())
            held = tensors[name].read()
            if held.shape != constant.shape or not np.array_equal(held, constant):
                problems.append(f'buffer {name} is not the constant that the released code makes')
    if problems:
        raise UserError('; '.join(problems))
    depths = collections.Counter(e.ours for e in wanted if e.layer is not None)
    arrays: dict[str, np.ndarray] = {}
    for entry in wanted:
        array = entry.transform.to_ours(tensors[entry.torch].read())
        target = array.dtype if dtype is None else np.dtype(dtype)
        if entry.layer is None:
            arrays[entry.ours] = np.ascontiguousarray(array.astype(target, copy=False))
            continue
        if entry.ours not in arrays:
            arrays[entry.ours] = np.empty((depths[entry.ours], *array.shape), target)
        arrays[entry.ours][entry.layer] = array
    return unflatten_dict(arrays, sep='.')


def export_tensors(
    params: Params, wanted: list[Entry], buffers: Mapping[str, tuple[str, Any]]
) -> dict[str, np.ndarray]:
    """Our tree as torch name -> array, buffers made again; the inverse of `import_tensors`."""
    flat = flatten_dict(params, sep='.')
    arrays = {}
    for entry in wanted:
        array = np.asarray(flat[entry.ours])
        array = array if entry.layer is None else array[entry.layer]
        arrays[entry.torch] = np.ascontiguousarray(entry.transform.to_torch(array))
    arrays |= {name: make(arrays[beside]) for name, (beside, make) in buffers.items()}
    return arrays


def _transformer_plan(config: TransformerConfig, naming: Naming):
    shapes = _flat_shapes(transformer_shapes(config))
    return (
        torch_table.entries(torch_table.TRANSFORMER, shapes, naming),
        torch_table.buffer_names(torch_table.TRANSFORMER_BUFFERS, config.depth, naming),
    )


def _tokenizer_plan(config: TokenizerConfig):
    shapes = _flat_shapes(tokenizer_shapes(config))
    return (
        torch_table.entries(torch_table.TOKENIZER, shapes),
        torch_table.buffer_names(torch_table.TOKENIZER_BUFFERS, 1),
    )


def _flat_shapes(shapes: Params) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flatten_dict(shapes, sep='.').items()}


def transformer_to_torch(
    config: TransformerConfig, params: Params, naming: Naming = Naming()
) -> dict[str, np.ndarray]:
    """The state dict that the released code loads, in the arrays' own dtype."""
    return export_tensors(params, *_transformer_plan(config, naming))


def tokenizer_to_torch(config: TokenizerConfig, params: Params) -> dict[str, np.ndarray]:
    """The tokenizer's state dict, which torch files hold under `vae`."""
    return export_tensors(params, *_tokenizer_plan(config))


def load_torch_tokenizer(
    path: str | Path, *, ema: bool = False, dtype: Any = np.float32, **overrides: Any
) -> tuple[TokenizerConfig, Params]:
    """Reads a released tokenizer; `dtype` None keeps the file's."""
    tensors = open_tokenizer(path, ema)
    try:
        config = read_tokenizer_config(tensors, **overrides)
        return config, import_tensors(tensors, *_tokenizer_plan(config), dtype=dtype)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None


def load_torch_transformer(
    path: str | Path,
    tokenizer_bits: int | None = None,
    *,
    ema: bool = False,
    dtype: Any = np.float32,
) -> tuple[TransformerConfig, Params, Naming]:
    """Reads a released transformer; `dtype` None keeps the file's."""
    tensors = open_transformer(path, ema)
    try:
        config, naming = read_transformer_config(tensors, tokenizer_bits)
        plan = _transformer_plan(config, naming)
        ignored = torch_table.TRANSFORMER_IGNORED
        return config, import_tensors(tensors, *plan, ignored, dtype), naming
    except UserError as error:
        raise UserError(f'{path}: {error}') from None


def load_torch_pair(
    transformer_path: str | Path,
    tokenizer_path: str | Path,
    *,
    ema: bool = False,
    dtype: Any = np.float32,
    token_stride: int = TOKEN_STRIDE,
    **overrides: Any,
) -> ModelBundle:
    """Reads a transformer and its tokenizer, refusing a pair that does not fit.

    `overrides` replace tokenizer fields that shapes cannot show, such as norm_groups.
    """
    tokenizer_config, tokenizer_params = load_torch_tokenizer(
        tokenizer_path, dtype=dtype, **overrides
    )
    config, params, _ = load_torch_transformer(
        transformer_path, tokenizer_config.bits, ema=ema, dtype=dtype
    )
    stride = tokenizer_config.stride * (2 if config.spatial_patchify else 1)
    if stride != token_stride:
        folded = ' folded 2×2' if config.spatial_patchify else ''
        raise UserError(
            f'{tokenizer_path}: codes of stride {tokenizer_config.stride}{folded} put a token on '
            f'{stride} pixels, the transformer expects {token_stride}; use its own tokenizer'
        )
    return ModelBundle(
        transformer_config=config,
        transformer_params=params,
        tokenizer_config=tokenizer_config,
        tokenizer_params=tokenizer_params,
    )
