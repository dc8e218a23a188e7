"""Paths of the repository, its configs, golden files and the shipped model."""

import importlib.util
import pathlib

TESTS = pathlib.Path(__file__).parent.parent
REPOSITORY = TESTS.parent
GOLDEN = TESTS / 'golden'  # reference arrays and small files of the released kind
CONFIGS = REPOSITORY / 'configs'
LAUNCH = REPOSITORY / 'launch'
DEMO = REPOSITORY / 'infinity_jax' / 'demo'  # the shipped model
VOCABULARY = DEMO / 'text_encoder'


def script(name):
    """The module `scripts/NAME.py`, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / 'scripts' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
