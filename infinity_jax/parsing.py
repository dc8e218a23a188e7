"""Builds the frozen dataclasses of configurations from a `ConfigDict` or from parsed JSON.

The only place that checks the names and types of fields; their ranges are the dataclasses' own.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from infinity_jax.errors import UserError
from infinity_jax.ranges import short
from infinity_jax.renamed import STORED, current_field

T = TypeVar('T')


def from_mapping(
    cls: type[T],
    fields: Mapping[str, Any],
    where: str = '',
    *,
    stored: bool = False,
) -> T:
    """Builds the dataclass `cls` from a `ConfigDict` or parsed JSON object.

    Args:
      cls: a dataclass type; fields that are dataclasses themselves are built in turn.
      fields: name to value. Lists become tuples.
      where: dotted path of `fields` in the whole configuration, for messages.
      stored: whether this package wrote them; then old names give no warning.

    Raises:
      UserError: a field is unknown (the nearest known name is suggested), missing or mistyped.
    """
    if not hasattr(fields, 'items'):
        raise UserError(f'config field {where} is {short(fields)}; wanted a group of fields')
    # No public type stands for "a dataclass".
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    prefix = f'{where}.' if where else ''
    values = {}
    for written, value in _items(fields, where):
        name = current_field(written, known, STORED if stored else prefix)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'; did you mean {prefix}{near[0]}?' if near else f'; known: {", ".join(known)}'
            raise UserError(f'unknown config field {prefix}{name}{hint}')
        if name in values:
            old = next(o for o in fields if o != name and current_field(o, known, STORED) == name)
            raise UserError(
                f'config field {prefix}{name} is given twice, once by its old name {old}; a config '
                f'that takes another one as its start sets {name}, not {old}'
            )
        values[name] = _convert(hints[name], value, prefix + name, stored)
    missing = [
        prefix + n
        for n, f in known.items()
        if n not in values and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f'config lacks {", ".join(missing)}: set it')
    return cls(**values)


def _items(fields: Mapping[str, Any], where: str) -> list[tuple[str, Any]]:
    """Name and value of each field; raises `UserError` where a name is no text."""
    try:
        items = list(fields.items())
        odd = [short(name) for name, _ in items if not isinstance(name, str)]
    except TypeError:  # a ConfigDict sorts its names
        odd = ['of several types']
    if odd:
        raise UserError(f'{where or "config"} has a name that is {odd[0]}; wanted text as names')
    return items


def _convert(hint: Any, value: Any, where: str, stored: bool) -> Any:
    """`value` as the annotated type `hint`, or a `UserError` that names `where`."""
    if isinstance(hint, types.UnionType):
        options = hint.__args__
        if value is None and type(None) in options:
            return None
        hint = next(o for o in options if o is not type(None))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not hasattr(value, 'items'):
            raise UserError(f'config field {where} is {short(value)}; wanted a group of fields')
        return from_mapping(hint, value, where, stored=stored)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):  # a set has no order, a counter no end
            raise UserError(f'config field {where} is {short(value)}; wanted a list')
        inner = hint.__args__[0]
        return tuple(_convert(inner, v, where, stored) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f'config field {where} is beyond 1e308; wanted a number') from None
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    ):
        raise UserError(
            f'config field {where} is {short(value)} of type {type(value).__name__}; '
            f'wanted {hint.__name__}'
        )
    return value
