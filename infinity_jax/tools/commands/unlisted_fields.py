"""Fields of a configuration that its config file does not list, set by --config.FIELD=VALUE."""

import ast
import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from infinity_jax.training.init_from import TASKS

_WORDS = {'true': True, 'false': False, 'none': None}


def set_apart(arguments: Sequence[str], config: ConfigDict) -> tuple[list[str], dict[str, Any]]:
    """Takes the flags of known fields that `config` lacks out of a command line.

    Args:
      arguments: the command line.
      config: as its file describes it.

    Returns:
      the other arguments, and the values of those fields by dotted name.
    """
    rest, values = list[str](), dict[str, Any]()
    for argument in arguments:
        name, equals, text = argument.lstrip('-').partition('=')
        head, _, path = name.partition('.')
        known = argument.startswith('-') and head == 'config' and equals
        hint = _unlisted(config, path.split('.')) if known else None
        if hint is None:
            rest.append(argument)
        else:
            values[path] = text if hint is str else _literal(text)
    return rest, values


def add_fields(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """Sets fields by dotted name, also those that the configuration lacks.

    Their types are checked where the run reads them, with a message that names the field.
    """
    with config.unlocked(), config.ignore_type():
        for path, value in values.items():
            group, (*names, last) = config, path.split('.')
            for name in names:
                if name not in group:
                    group[name] = ConfigDict()
                group = group[name]
            group[last] = value
    return config


def _unlisted(config: ConfigDict, names: Sequence[str]) -> Any:
    """The type of a field that the task knows and `config` lacks; None for all others."""
    cls: Any = TASKS.get(config.get('task'))
    node: Any = config
    for name in names:
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        if name not in hints:
            return None
        cls = hints[name]
        if isinstance(cls, types.UnionType):
            cls = next(each for each in cls.__args__ if each is not types.NoneType)
        node = node[name] if node is not None and name in node else None
    return cls if node is None else None


def _literal(text: str) -> Any:
    """A value as Python reads it; other texts stay as they are, for the check of types."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return _WORDS.get(text.lower(), text)
