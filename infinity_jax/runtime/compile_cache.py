"""The persistent compilation cache: the second start of a program skips the compiler."""

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from infinity_jax.errors import in_one_line
from infinity_jax.runtime.remote import refuse_remote

# By default, JAX caches programs that compiled for at least 1 s. Generation layer by layer has many
# smaller ones.
MIN_COMPILE_SECONDS = 0.0


def user_cache_folder() -> pathlib.Path:
    """The user's folder for files that can be made again.

    Raises:
      FileNotFoundError: the user has no home, as in some containers.
    """
    base = os.environ.get('XDG_CACHE_HOME')
    refuse_remote(base or '', 'XDG_CACHE_HOME')
    try:
        return pathlib.Path(base or pathlib.Path.home() / '.cache') / 'infinity_jax'
    except RuntimeError:
        raise FileNotFoundError('no home folder; set XDG_CACHE_HOME') from None


def use_compile_cache() -> None:
    """Caches compiled programs in the user's cache folder; JAX_COMPILATION_CACHE_DIR has priority.

    Where the folder cannot be written, one line says so, and nothing is cached.

    Does nothing for several processes on CPUs. There each process needs its own programs, but JAX
    caches only those of the first process, which then waits for the others longer than its
    collectives allow (30 s).
    """
    if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        return
    if jax.distributed.is_initialized() and jax.default_backend() == 'cpu':
        return
    try:
        folder = user_cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        print(
            f'compiled programs are not cached ({in_one_line(error, 200)}), so that each start '
            'compiles; set JAX_COMPILATION_CACHE_DIR to a folder that can be written',
            file=sys.stderr,
        )
        return
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_COMPILE_SECONDS)


@contextlib.contextmanager
def without_compile_cache() -> Iterator[None]:
    """Compiles without reading or writing the cache.

    Needed for programs that will be serialized, since a program that XLA's CPU backend loads from
    its cache loses functions on serialization, and for programs of devices that are absent.
    """
    # JAX adds its options to the class at run time.
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update('jax_enable_compilation_cache', False)
    reset_cache()  # it caches whether it is enabled
    try:
        yield
    finally:
        jax.config.update('jax_enable_compilation_cache', enabled)
        reset_cache()
