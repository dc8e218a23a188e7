"""`jax.jit` with compiler options that depend on the device.

Options are given when a function is jitted, but its device is known only when it is traced.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax


class PlatformJit:
    """A jitted function whose compiler options are evaluated at every call.

    Like a function of `jax.jit`, it can be called and lowered. If there are options, it cannot be
    traced within another jitted function.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        compiler_options: Callable[[], dict[str, str] | None],
        **options: Any,
    ):
        """Wraps a function.

        Args:
          function: the function to jit.
          compiler_options: returns the compiler's options for the present device, or None.
          options: of `jax.jit`.
        """
        functools.update_wrapper(self, function)
        self._function, self._compiler_options, self._options = function, compiler_options, options
        self._made: dict[tuple[tuple[str, str], ...], Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._jitted()(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        return self._jitted().lower(*args, **kwargs)

    def compiled(self) -> int:
        """The number of programs compiled by calls."""
        return sum(jitted._cache_size() for jitted in self._made.values())

    def _jitted(self) -> Any:
        options = self._compiler_options()
        key = tuple(sorted((options or {}).items()))
        if key not in self._made:
            self._made[key] = jax.jit(self._function, compiler_options=options, **self._options)
        return self._made[key]
