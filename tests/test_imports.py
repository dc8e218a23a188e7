"""Imports point one way, from what is run down to facts (layers below, top first)."""

import ast
import fnmatch
import functools
import pathlib

import pytest

import infinity_jax

PACKAGE = pathlib.Path(infinity_jax.__file__).parent
CONFIGS = PACKAGE.parent / 'configs'

WHOLE = ('data', 'tokenizer', 'transformer')  # packages that stand in one layer

# A module imports from its own layer or lower ones, never in a circle. The lowest name that
# matches says where a module stands.
LAYERS = (
    ('main', 'cli', 'commands.*', 'exits', 'supervisor'),
    ('convert.from_torch', 'convert.to_torch'),
    (
        'training.*', 'evaluation.*', 'parity.*', 'bench.*', 'plan.*', 'inspect_data', 'precompute',
        'precompute_encode',
    ),
    ('pipeline', 'generate', 'drawing.*', 'weights.placement'),
    (
        'self_correction', 'losses', 'sampling', 'pictures', 'data', 'drawing.economy',
        'weights.*', 'convert.torch_*', 'evaluation.matcher', 'evaluation.picture_metrics',
        'training.checkpoint', 'training.optimizer', 'training.metrics', 'training.throughput',
        'training.lora', 'training.run_folder', 'training.loss_level',
    ),
    (
        'text', 't5', 'tokenizer', 'transformer', 'weights.t5_folder', 'weights.weight_files',
        'weights.weight_writer', 'convert.torch_pickle', 'convert.torch_legacy',
        'convert.torch_unpickler', 'convert.torch_writer',
    ),
    (
        'config', 'scales', 'sharding', 'platform_jit', 'compile_cache', 'host_memory', 'processes',
        'flops', 'device_peaks', 'weights.hub', 'training.preemption', 'drawing.programs',
        'plan.hlo_text', 'plan.collectives', 'plan.topology', 'plan.program_*',
    ),
)  # fmt: skip
MAY_KNOW_TORCH = (
    'convert.*',
    'weights.weight_files',
    'parity.*',
    'cli',
    'commands.convert_command',
)


def matches(module: str, names: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(module, name) for name in names)


def layer_of(module: str) -> int | None:
    """Depth of a module's layer, 0 at the top; None for one that has no layer yet."""
    return max((i for i, names in enumerate(LAYERS) if matches(module, names)), default=None)


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


def module_of(path: pathlib.Path) -> str:
    """Dotted name below the package, of a module or of the package in WHOLE that it is part of."""
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return parts[0] if parts[0] in WHOLE else '.'.join(parts)


@functools.cache
def graph() -> dict[str, frozenset[str]]:
    """Module -> those of ours that it imports."""
    paths = {path: module_of(path) for path in PACKAGE.rglob('*.py') if path.stem != '__init__'}
    known = set(paths.values())
    edges: dict[str, set[str]] = {name: set() for name in known}
    for path, name in paths.items():
        for found in imported(path.read_text()):
            parts = found.split('.')[1:] if found.startswith('infinity_jax.') else []
            inside = {'.'.join(parts[:n]) for n in range(1, len(parts) + 1)}
            edges[name] |= (inside & known) - {name}
    return {name: frozenset(found) for name, found in edges.items()}


def test_every_module_has_its_layer():
    homeless = sorted(module for module in graph() if layer_of(module) is None)
    assert not homeless, f'place {homeless} in LAYERS'


@pytest.mark.parametrize('module', sorted(graph()))
def test_no_module_imports_from_a_higher_layer(module):
    own = layer_of(module)
    layers = {name: layer_of(name) for name in graph()[module]}
    higher = sorted(
        name for name, layer in layers.items() if None not in (own, layer) and layer < own
    )
    assert not higher, f'{module} imports {higher}'


def test_there_is_no_circle():
    done: set[str] = set()

    def visit(module, path):
        assert module not in path, ' → '.join((*path, module))
        if module not in done:
            for other in graph().get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in graph():
        visit(module, ())


def test_tokenizer_and_transformer_never_import_each_other():
    assert 'transformer' not in graph()['tokenizer']
    assert 'tokenizer' not in graph()['transformer']
    for module in ('tokenizer', 'transformer'):
        assert graph()[module] <= {'config', 'scales', 'sharding'}


def test_scales_is_numpy_only_and_config_imports_nothing_of_ours():
    assert graph()['config'] == frozenset()
    names = imported((PACKAGE / 'scales.py').read_text())
    assert not any(n.split('.')[0] in ('jax', 'flax') for n in names)


def test_nothing_imports_torch():
    for path in PACKAGE.rglob('*.py'):
        roots = {name.split('.')[0] for name in imported(path.read_text())}
        assert 'torch' not in roots, path.name


def test_only_the_weight_files_know_torch():
    for module, found in graph().items():
        if any(matches(name, ('convert.torch_*',)) for name in found):
            assert matches(module, MAY_KNOW_TORCH), module


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda p: p.name)
def test_configs_import_nothing_of_the_package(path):
    assert not any(n.split('.')[0] == 'infinity_jax' for n in imported(path.read_text()))


def test_a_relative_or_nested_import_is_seen():
    assert imported('def f():\n    from infinity_jax.training.train import x') == {
        'infinity_jax.training.train',
        'infinity_jax.training.train.x',
    }
    with pytest.raises(AssertionError):
        imported('from . import x')
