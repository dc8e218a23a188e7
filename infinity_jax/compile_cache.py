"""The persistent compilation cache: the second start of a program skips the compiler."""

import os
import pathlib

import jax

MIN_COMPILE_SECONDS = 0.5


def use_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder; JAX_COMPILATION_CACHE_DIR wins.

    Not for several processes on CPUs: there each needs programs of its own, JAX keeps those of the
    first, and the first then waits for the others longer than its collectives allow (30 s).
    """
    if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        return
    if jax.distributed.is_initialized() and jax.default_backend() == 'cpu':
        return
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(base) / 'infinity_jax'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_COMPILE_SECONDS)
