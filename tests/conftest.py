"""Every test runs on the CPU as eight devices and refuses silent rank promotion."""

import gc
import os
import pathlib

# Tests compile much and compute little: half of XLA's time on the CPU goes into optimising.
# XLA_FLAGS of the caller, such as --xla_cpu_max_isa=AVX2, come last and win.
QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
os.environ['XLA_FLAGS'] = f'{QUICK} {os.environ.get("XLA_FLAGS", "")}'.strip()

import jax  # noqa: E402
import pytest  # noqa: E402

from infinity_jax.renamed import notice  # noqa: E402

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Programs that several tests or runs compile are compiled once.
CACHE = pathlib.Path(__file__).parent.parent / '.pytest_cache' / 'jax'
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


@pytest.fixture(autouse=True)
def old_names_not_yet_used():
    """Every test sees the notice of an old name, which is printed once per process."""
    notice.cache_clear()


@pytest.fixture(autouse=True, scope='module')
def programs_are_freed():
    """Frees the programs of a file: they would fill memory, and slow every garbage collection."""
    yield
    jax.clear_caches()
    gc.collect()
