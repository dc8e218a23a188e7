"""The flags --config=FILE:VARIANT and --config.FIELD=VALUE, with one-line errors."""

import difflib
import os
import re
import runpy
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.renamed import current_field
from infinity_jax.runtime.local_files import check_path
from infinity_jax.tools.commands.unlisted_fields import add_fields, set_apart

CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, such as configs/t2i.py:demo')


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line, for `absl.app.run`; returns the arguments that are no flags.

    Raises:
      UserError: no such file or variant, a file that fails in Python, an unknown field (the nearest
        known one is suggested), a value of another type, an unknown flag.
    """
    file, unlisted = _value_of(argv, 'config'), dict[str, Any]()
    if file:
        _check_file(file)
        config = _config_of(file)  # its own errors, in one line
        argv = [_with_current_names(argument, file) for argument in argv]
        argv, unlisted = set_apart(argv, config)
        # ml_collections reads the fields from here, not from what absl passes on.
        current = [_with_current_names(argument, file) for argument in sys.argv[1:]]
        sys.argv[1:] = set_apart(current, config)[0]
    rest = _parsed(flags.FLAGS, argv, file)
    if CONFIG.value is None:
        raise UserError('no config file; name one, for instance --config=configs/t2i.py')
    add_fields(CONFIG.value, unlisted)
    if len(rest) > 1:
        raise UserError(f'unexpected argument {rest[1]!r}; settings are --config.FIELD=VALUE')
    return rest


def read_config_file(spec: str | None, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a configuration as training does.

    Args:
      spec: FILE or FILE:VARIANT.
      overrides: --config.FIELD=VALUE, one string each.

    Raises:
      UserError: no such file or variant, a file that fails in Python, or what `parse_flags` raises
        for overrides.
    """
    if not spec:
        raise UserError('no config file; name one, for instance --config configs/t2i.py')
    _check_file(spec)
    config = _config_of(spec)
    if not overrides:
        return config
    overrides = [_with_current_names(argument, spec) for argument in overrides]
    overrides, unlisted = set_apart(overrides, config)
    argv, values = ['', f'--config={spec}', *overrides], flags.FlagValues()
    holder = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
    _parsed(values, argv, spec)
    return add_fields(holder.value, unlisted)


def _parsed(values: flags.FlagValues, argv: list[str], file: str | None) -> list[str]:
    """Parses a command line with absl, errors in one line; returns what `parse_flags` does."""
    try:
        return values(argv)
    except (AttributeError, LookupError):
        if file is None:
            raise
        raise UserError(_unknown_field(argv, file)) from None
    except (flags.Error, TypeError, ValueError) as error:
        last = str(error).strip().splitlines()[-1].strip()
        raise UserError(re.sub(r'^\w+Error: ', '', last)) from None


def _with_current_names(argument: str, spec: str) -> str:
    """A flag with renamed fields replaced by the names that the config file uses."""
    if not argument.lstrip('-').startswith('config.'):
        return argument
    name, equals, value = argument.partition('=')
    node: Any = _config_of(spec)
    path: list[str] = []
    for field in name.split('.')[1:]:
        known = list(node) if hasattr(node, 'keys') else ()
        path.append(current_field(field, known, ''.join(f'{each}.' for each in path)))
        node = node[path[-1]] if path[-1] in known else None
    return '.'.join([name.split('.')[0], *path]) + equals + value


def _config_of(spec: str) -> ConfigDict:
    """Executes a config file.

    Raises:
      UserError: it fails, in one line with its line number, or returns no `ConfigDict`.
    """
    file, *variant = spec.split(':', 1)
    try:
        get_config = runpy.run_path(file).get('get_config')
        if not callable(get_config):
            raise UserError(f'{file}: has no function get_config; wanted one that returns a config')
        config = get_config(*variant)
    except UserError:
        raise
    # The file is any Python code, so any error may come out of it.
    except (Exception, SystemExit) as error:
        if variant and isinstance(error, (KeyError, ValueError)):
            text = f'{spec}: {in_one_line(error)}; name a variant that the file defines'
        else:
            text = f'{_place(file, error)}: {type(error).__name__}: {in_one_line(error, 300)}'
        raise UserError(text) from None
    if not isinstance(config, ConfigDict):
        raise UserError(
            f'{file}: get_config returns a {type(config).__name__}; wanted a ConfigDict of '
            'ml_collections'
        )
    return config


def _place(file: str, error: BaseException) -> str:
    """FILE:LINE of the last line of a config file that was executed, or could not be parsed."""
    if isinstance(error, SyntaxError):
        lines = [error.lineno] if error.filename == file else []
    else:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
    return f'{file}:{lines[-1]}' if lines and lines[-1] else file


def _check_file(spec: str) -> None:
    if re.match(r'[A-Za-z]:[\\/]', spec):
        raise UserError(
            f'--config={spec}: the colon ends the name of the file; name it by a relative path'
        )
    file = spec.split(':')[0]
    check_path(file, '--config')
    if not os.path.isfile(file):
        raise UserError(
            f'--config={spec}: no such file; name one, for instance --config=configs/t2i.py'
        )


def _value_of(argv: list[str], flag: str) -> str | None:
    """The value of a flag given as --flag=value or --flag value."""
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip('-').partition('=')
        if argument.startswith('-') and name == flag:
            return value if equals else next(iter(argv[i + 1 :]), None)
    return None


def _unknown_field(argv: list[str], config_file: str) -> str:
    """Names the first overridden field that the config file lacks."""
    config = _config_of(config_file)
    for argument in argv[1:]:
        name = argument.lstrip('-').partition('=')[0]
        node, path = config, name.split('.')[1:]
        if not name.startswith('config.'):
            continue
        for depth, field in enumerate(path):
            known = list(node) if hasattr(node, 'keys') else []
            if field not in known:
                prefix = '.'.join(['config', *path[:depth]])
                near = difflib.get_close_matches(field, known, n=1)
                hint = f'did you mean {prefix}.{near[0]}?' if near else f'known: {", ".join(known)}'
                return f'unknown config field {prefix}.{field}; {hint}'
            node = node[field]
    return 'a --config.FIELD=VALUE flag names no field of the config file'
