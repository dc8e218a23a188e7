"""`jax.jit` with compiler options that only one platform knows.

Options are given when a function is jitted; what it will run on is known when it is traced.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from infinity_jax.sharding import target_platform


class PlatformJit:
    """A jitted function that is compiled with options of its own where a TPU will run it.

    As with `jax.jit`, it can be called and lowered; the current mesh or the default device tells
    the platform, see `target_platform`.
    """

    def __init__(self, function: Callable[..., Any], tpu: dict[str, str], **options: Any):
        """Takes compiler options for TPU, and those of `jax.jit`."""
        functools.update_wrapper(self, function)
        self._anywhere = jax.jit(function, **options)
        self._on_tpu = jax.jit(function, compiler_options=tpu, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._jitted()(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        return self._jitted().lower(*args, **kwargs)

    def compiled(self) -> int:
        """How many programs calls have made."""
        return self._anywhere._cache_size() + self._on_tpu._cache_size()

    def _jitted(self) -> Any:
        return self._on_tpu if target_platform() == 'tpu' else self._anywhere
