"""The names that `infinity_jax` itself offers, its version, and what importing them costs."""

import configparser
import subprocess
import sys

import pytest
from helpers.paths import REPOSITORY

import infinity_jax

# Slow to import, and not needed before a call reads from the hub, trains or runs on a TPU.
LATE = ('huggingface_hub', 'transformers', 'orbax', 'grain', 'matplotlib', 'tensorflow')
LATE += ('optax', 'jax.experimental.pallas')


def loaded_by(code):
    """Modules that a fresh process has loaded after this code."""
    command = [sys.executable, '-c', f'{code}\nimport sys; print(*sys.modules)']
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(process.stdout.split())


def test_every_name_is_there_and_listed():
    for name in infinity_jax.__all__:
        assert getattr(infinity_jax, name) is not None
        assert name in dir(infinity_jax)
    assert infinity_jax.InfinityPipeline.__name__ == 'InfinityPipeline'
    with pytest.raises(AttributeError, match="'infinity_jax' has no attribute 'Pipeline'"):
        infinity_jax.Pipeline  # noqa: B018


def test_type_checkers_see_the_names_that_are_imported_late():
    assert (REPOSITORY / 'infinity_jax' / 'py.typed').is_file()
    source = (REPOSITORY / 'infinity_jax' / '__init__.py').read_text()
    for name, module in infinity_jax._MODULES.items():
        assert f'    from infinity_jax.{module} import {name}\n' in source


def test_the_version_is_that_of_the_package():
    metadata = configparser.ConfigParser()
    metadata.read(REPOSITORY / 'setup.cfg')
    assert infinity_jax.__version__ == metadata['metadata']['version']


@pytest.mark.parametrize('code', ['import infinity_jax.scales', 'import infinity_jax.cli'])
def test_facts_and_the_command_line_do_not_load_jax(code):
    assert not loaded_by(code) & {'jax', 'flax'}


def test_the_pipeline_does_not_load_what_it_may_never_need():
    loaded = loaded_by('from infinity_jax import InfinityPipeline, SamplingConfig')
    assert 'infinity_jax.inference.pipeline' in loaded
    assert not [name for name in loaded if name.startswith(LATE)]
