"""Imports of packages that are not dependencies, such as torch."""

import importlib
from typing import Any

from infinity_jax.errors import UserError, in_one_line


def import_optional(module: str, install: str) -> Any:
    """Imports a module of an optional package.

    Args:
      module: its dotted name.
      install: what installs it, such as "pip install 'infinity_jax[fid]'".

    Raises:
      UserError: it is not installed, or its import fails.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a torchvision for another torch raises RuntimeError, for example
        package = module.partition('.')[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        problem = (
            'is not installed' if absent else f'cannot be imported ({in_one_line(error, 160)})'
        )
        raise UserError(f'the package {package} {problem}: {install}') from None
