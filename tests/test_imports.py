"""Imports point one way between folders, from what is run down to facts; see `GRAPH`."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest
from helpers.paths import CONFIGS, REPOSITORY, TESTS

PACKAGE = REPOSITORY / 'infinity_jax'

# Folder (or module next to the folders) -> all that it may import; the facts are open to all above
# them, each other arrow is used. Each comes after those it names,
# so that reading this from the top tells where a thing can live.
FACTS = ('errors', 'renamed', 'ranges', 'scales', 'config', 'parsing')
NETWORKS = ('text', 'tokenizer', 'transformer')
GRAPH = {
    'errors': (),
    'renamed': (),
    'ranges': ('errors',),
    'scales': ('errors', 'ranges'),
    'config': ('errors', 'renamed', 'ranges', 'scales'),
    'parsing': ('errors', 'renamed', 'ranges'),
    'runtime': ('errors',),
    'images': ('errors', 'runtime'),
    'sharding': ('errors', 'ranges', 'runtime'),
    'text': ('errors', 'config', 'runtime'),
    'tokenizer': (*FACTS, 'runtime', 'sharding'),
    'transformer': (*FACTS, 'sharding', 'text'),
    'emoji': ('errors',),
    'data': (*FACTS, 'runtime', 'text', 'emoji'),
    'weights': (*FACTS, 'runtime', 'sharding', *NETWORKS),
    'inference': (*FACTS, 'images', 'runtime', 'sharding', *NETWORKS, 'data', 'weights'),
    'training': (
        *FACTS, 'images', 'runtime', 'sharding', *NETWORKS, 'emoji', 'data', 'weights', 'inference',
    ),
    'serving': (*FACTS, 'runtime', 'sharding', 'text', 'data', 'inference'),
    'convert': (*FACTS, 'runtime', 'text', 'weights', 'training'),
    'tools': (
        *FACTS, 'images', 'runtime', 'sharding', *NETWORKS, 'emoji', 'data', 'weights', 'inference',
        'training', 'serving', 'convert',
    ),
    'main': ('runtime', 'training', 'tools'),
    'cli': ('errors', 'runtime', 'tools', 'main'),
}  # fmt: skip
# What a pure training step must not bring along.
UNWANTED = ('data.', 'emoji.', 'weights.', 'inference.', 'tools.', 'convert.')
# Types that a step reads: dataclasses of a run's configuration and the batch.
CONFIGURATION = ('data.config', 'data.batch')


def imported(source: str) -> set[str]:
    """Dotted names of the modules that a piece of code imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'relative import in line {node.lineno}'
            names.add(node.module)
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def modules() -> dict[str, pathlib.Path]:
    """Dotted name below the package -> file."""
    paths = (path for path in PACKAGE.rglob('*.py') if path.stem != '__init__')
    return {'.'.join(p.relative_to(PACKAGE).with_suffix('').parts): p for p in paths}


@functools.cache
def edges() -> dict[str, frozenset[str]]:
    """Module -> those of ours that it imports."""
    known, found = modules(), {}
    for name, path in known.items():
        inside = {
            other.removeprefix('infinity_jax.')
            for other in imported(path.read_text())
            if other.startswith('infinity_jax.')
        }
        found[name] = frozenset((inside & known.keys()) - {name})
    return found


def folder(module: str) -> str:
    return module.split('.')[0]


@pytest.mark.parametrize('name', sorted({folder(module) for module in modules()}))
def test_a_folder_imports_only_those_below_it(name):
    assert name in GRAPH, f'{name} has no place in GRAPH'
    for module, others in edges().items():
        if folder(module) == name:
            wrong = sorted(other for other in others if folder(other) not in (name, *GRAPH[name]))
            assert not wrong, f'{module} imports {wrong}'


def test_no_arrow_of_the_graph_is_unused():
    used: dict[str, set[str]] = {name: set() for name in GRAPH}
    for module, others in edges().items():
        used[folder(module)] |= {folder(other) for other in others}
    for name, others in GRAPH.items():
        assert set(others) - used[name] - set(FACTS) == set(), name


def test_parts_of_a_run_reach_no_inference():
    assert not any(n.startswith('inference.') for n in edges()['training.transformer.parts'])


def test_the_graph_of_folders_has_no_cycle():
    seen: list[str] = []
    for name, others in GRAPH.items():
        assert set(others) <= set(seen), f'{name} stands above {set(others) - set(seen)}'
        seen.append(name)


def test_no_modules_import_each_other_in_a_circle():
    done: set[str] = set()

    def visit(module, path):
        assert module not in path, ' → '.join((*path, module))
        if module not in done:
            for other in edges()[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in edges():
        visit(module, ())


def test_the_two_tasks_share_no_module_of_their_own():
    for module, others in edges().items():
        for own, other in (('transformer', 'tokenizer'), ('tokenizer', 'transformer')):
            if module.startswith(f'training.{own}.'):
                assert not any(name.startswith(f'training.{other}.') for name in others), module


def test_the_training_step_reaches_no_readers_of_data_or_weights_and_no_inference():
    reached, waiting = set(), ['training.transformer.step']
    while waiting:  # imports inside functions count as well
        for other in edges()[waiting.pop()] - reached:
            reached.add(other)
            waiting.append(other)
    assert not [n for n in reached if n.startswith(UNWANTED) and n not in CONFIGURATION]


def test_the_training_step_loads_no_readers_of_data_or_weights_and_no_inference():
    code = (
        'import sys, infinity_jax.training.transformer.step;'
        'print(*(name for name in sys.modules if name.startswith("infinity_jax.")))'
    )
    command = [sys.executable, '-c', code]
    output = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = [name.removeprefix('infinity_jax.') for name in output.stdout.split()]
    wrong = [n for n in loaded if n.startswith(UNWANTED) and n not in CONFIGURATION]
    assert not wrong
    assert len(loaded) <= 55


def test_scales_is_numpy_only():
    names = imported((PACKAGE / 'scales.py').read_text())
    assert not any(n.split('.')[0] in ('jax', 'flax') for n in names)


def test_nothing_imports_torch():
    for path in PACKAGE.rglob('*.py'):
        roots = {name.split('.')[0] for name in imported(path.read_text())}
        assert 'torch' not in roots, path.name


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda p: p.name)
def test_configs_import_nothing_of_the_package(path):
    assert not any(n.split('.')[0] == 'infinity_jax' for n in imported(path.read_text()))


def test_no_test_imports_a_test():
    tests = [path for path in TESTS.rglob('*.py') if 'golden' not in path.parts]
    assert len(tests) > 100
    for path in tests:
        parts = {part for name in imported(path.read_text()) for part in name.split('.')}
        wrong = sorted(part for part in parts if part.startswith('test_'))
        assert not wrong, f'{path.relative_to(TESTS)} imports {wrong}; move it into tests/helpers'


def test_a_relative_or_nested_import_is_seen():
    assert imported('def f():\n    from infinity_jax.training.loop import x') == {
        'infinity_jax.training.loop',
        'infinity_jax.training.loop.x',
    }
    with pytest.raises(AssertionError):
        imported('from . import x')
