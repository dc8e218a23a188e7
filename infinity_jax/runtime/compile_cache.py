"""The persistent compilation cache: the second start of a program skips the compiler."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

# By default JAX keeps what took a second. Drawing layer by layer has many programs below that.
MIN_COMPILE_SECONDS = 0.0


def user_cache_folder() -> pathlib.Path:
    """Where this user keeps what can be made again."""
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(base) / 'infinity_jax'


def use_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder; JAX_COMPILATION_CACHE_DIR wins.

    Not for several processes on CPUs: there each needs programs of its own, JAX keeps those of the
    first, and the first then waits for the others longer than its collectives allow (30 s).
    """
    if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        return
    if jax.distributed.is_initialized() and jax.default_backend() == 'cpu':
        return
    jax.config.update('jax_compilation_cache_dir', str(user_cache_folder()))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_COMPILE_SECONDS)


@contextlib.contextmanager
def without_compile_cache() -> Iterator[None]:
    """Compiles anew, and keeps nothing.

    For what is to be serialized: a program that XLA's CPU backend took from its cache loses
    functions when it is. And for programs of devices that are not here.
    """
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update('jax_enable_compilation_cache', False)
    reset_cache()  # it remembers whether it is used
    try:
        yield
    finally:
        jax.config.update('jax_enable_compilation_cache', enabled)
        reset_cache()
