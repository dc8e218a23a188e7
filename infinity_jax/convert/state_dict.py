"""Finds the state dict in a torch file: plain, nested, wrapped or in shards."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infinity_jax.convert.dimensions import Tensors
from infinity_jax.errors import UserError
from infinity_jax.weights.weight_files import is_tensor, open_weights

WRAPPERS = ('module.', '_orig_mod.')  # prefixes of torch's wrappers


def open_transformer(path: str | Path, ema: bool = False) -> Tensors:
    """Opens a transformer's state dict: plain, of a training checkpoint, or in shards.

    Args:
      path: .pth or .safetensors file, or a folder of shards with an index.
      ema: use the moving average of a training checkpoint.
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
    """Opens a tokenizer's state dict: plain, or under `vae`, `ema` or `state_dict`."""
    state = open_weights(path)
    if 'trainer' in state:
        return _nested(path, state['trainer'], ('vae_local',))
    if ema or 'vae' in state or 'ema' in state:
        return _nested(path, state, ('ema',) if ema else ('vae', 'ema'))
    if 'state_dict' in state:  # as Lightning saves VQGAN and LDM
        return _nested(path, state, ('state_dict',))
    return _state_dict(path, state)


def _nested(path: str | Path, state: Any, names: Iterable[str]) -> Tensors:
    """The first of the named state dicts that exists."""
    if not isinstance(state, Mapping):
        raise UserError(f'{path}: holds a {type(state).__name__} where a state dict should be')
    for name in names:
        if state.get(name):
            return _state_dict(path, state[name])
    raise UserError(f'{path}: has {", ".join(map(str, state))}; wanted {" or ".join(names)}')


def _state_dict(path: str | Path, state: Any) -> Tensors:
    if not isinstance(state, Mapping):
        raise UserError(f'{path}: holds a {type(state).__name__} where a state dict should be')
    others = [str(name) for name, value in state.items() if not is_tensor(value)]
    if others or not state:
        raise UserError(
            f'{path}: wanted a state dict of tensors; not tensors: {", ".join(others) or "(empty)"}'
        )
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return dict(state)
