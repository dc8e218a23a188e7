"""Finds the state dict in a torch file: plain, nested, wrapped, among other things, in shards."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infinity_jax.convert.dimensions import BLOCK_NAME, Tensors
from infinity_jax.errors import UserError
from infinity_jax.weights.weight_files import is_tensor, kind_of, open_weights

# Modules that torch puts around a model, or around parts of it, and that show in the names.
INSIDE = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')
AROUND = ('module.', 'model.')  # at the start of all names
WRAPPED_BLOCK = re.compile(rf'({BLOCK_NAME.pattern})module\.')
TRANSFORMER = re.compile(rf'(?:^|\.){BLOCK_NAME.pattern}')
TOKENIZER = re.compile(r'(?:^|\.)(?:encoder|decoder)\.')
# Where one file has several, in this order; names with `ema` are moving averages.
PREFERRED = ('gpt_fsdp', 'gpt_wo_ddp', 'gpt_ema_fsdp', 'gpt_ema_for_vis', 'vae', 'vae_local')
MAX_DEPTH = 5  # of dictionaries in dictionaries
MAX_NAMED = 8

Found = dict[tuple[str, ...], Mapping[str, Any]]  # keys from the outside -> dictionary


def open_transformer(path: str | Path, ema: bool = False) -> Tensors:
    """Opens a transformer's state dict: plain, of a training checkpoint, or in shards.

    Prints a line about what else the file holds.

    Args:
      path: .pth or .safetensors file, or a folder of shards with an index.
      ema: use the moving average of a training checkpoint.

    Raises:
      UserError: no state dict of a transformer, or several.
    """
    content = open_weights(path)
    found = _state_dicts(content, TRANSFORMER)
    averages = {keys: state for keys, state in found.items() if _is_average(keys)}
    if ema and found and not averages:
        raise UserError(
            f'{path}: a plain state dict without a moving average; read its weights as they are'
        )
    plain = {keys: state for keys, state in found.items() if keys not in averages}
    if found and not ema and not plain:
        names = ', '.join('.'.join(keys) for keys in averages)
        raise UserError(f'{path}: has only moving averages, {names}; import them with --ema')
    return _only(path, content, averages if ema else plain)


def open_tokenizer(path: str | Path, ema: bool = False) -> Tensors:
    """Opens a tokenizer's state dict: plain, or nested, such as under `vae` or `state_dict`.

    Args:
      path: .pth or .safetensors file, or a folder of shards with an index.
      ema: use the moving average, which is else used where the file has nothing else.
    """
    content = open_weights(path)
    found = _state_dicts(content, TOKENIZER)
    averages = {keys: state for keys, state in found.items() if _is_average(keys)}
    plain = {keys: state for keys, state in found.items() if keys not in averages}
    return _only(path, content, averages if ema or not plain else plain)


def _is_average(keys: tuple[str, ...]) -> bool:
    return any('ema' in re.split(r'[^a-z]+', key.lower()) for key in keys)


def _state_dicts(content: Mapping[str, Any], names: re.Pattern[str]) -> Found:
    """The dictionaries in a file that have tensors of such names."""
    return {
        keys: state
        for keys, state in _dictionaries(content)
        if any(
            isinstance(name, str) and is_tensor(value) and names.search(_unwrapped(name))
            for name, value in state.items()
        )
    }


def _dictionaries(
    content: Mapping[str, Any], keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    yield keys, content
    for name, value in content.items():
        if isinstance(value, Mapping) and len(keys) < MAX_DEPTH:
            yield from _dictionaries(value, (*keys, str(name)))


def _only(path: str | Path, content: Mapping[str, Any], found: Found) -> Tensors:
    """The plain tensors of the state dict that was found."""
    if not found:
        seen = [f'{name} ({kind_of(value)})' for name, value in content.items()][:MAX_NAMED]
        if any(map(is_tensor, content.values())):
            found = {(): content}  # whoever reads it says what is missing
        else:
            raise UserError(
                f'{path}: wanted a state dict of tensors, plain or in a dictionary; holds '
                f'{", ".join(seen) or "nothing"}{_unread_elements(content)}'
            )
    preferred = [keys for name in PREFERRED for keys in found if keys and keys[-1] == name]
    if len(found) > 1 and not preferred:
        names = ', '.join('.'.join(keys) or 'the file itself' for keys in found)
        raise UserError(f'{path}: has several state dicts, {names}; save one of them alone')
    keys = preferred[0] if preferred else next(iter(found))
    state = found[keys]
    _print_rest(path, content, keys)
    tensors = {str(name): value for name, value in state.items() if is_tensor(value)}
    return _without_wrappers(path, tensors)


def _unread_elements(content: Mapping[str, Any]) -> str:
    """A hint where tensors have elements that are not read; '' where there are none."""
    rebuilt = any(kind_of(value).startswith('torch._utils._rebuild') for value in content.values())
    return '. Float8, quantized and sparse tensors are not read: save them in float32' * rebuilt


def _print_rest(path: str | Path, content: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Prints what is passed over on the way to a state dict and in it."""
    rest = []
    for depth in range(len(keys) + 1):
        on_the_way = keys[depth] if depth < len(keys) else None
        for name, value in content.items():
            if str(name) != on_the_way and not is_tensor(value):
                rest.append(f'{".".join((*keys[:depth], str(name)))} ({kind_of(value)})')
        # A key may be a number.
        content = next((v for name, v in content.items() if str(name) == on_the_way), content)
    if rest:
        more = f' and {len(rest) - MAX_NAMED} more' if len(rest) > MAX_NAMED else ''
        print(f'{path}: not read: {", ".join(rest[:MAX_NAMED])}{more}')


def _unwrapped(name: str) -> str:
    return '.'.join(part for part in name.split('.') if part not in INSIDE)


def _without_wrappers(path: str | Path, tensors: Tensors) -> Tensors:
    """The tensors under the names that the model has without wrappers, in any order and depth."""
    plain = {_unwrapped(name): tensor for name, tensor in tensors.items()}
    while prefix := next((p for p in AROUND if all(n.startswith(p) for n in plain)), ''):
        plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    plain = {WRAPPED_BLOCK.sub(r'\1', name): tensor for name, tensor in plain.items()}
    if len(plain) < len(tensors):
        raise UserError(
            f'{path}: {len(tensors) - len(plain)} names are the same once wrappers such as '
            f'{INSIDE[0]} are left out; save the state dict of the model itself'
        )
    return plain
