"""Imports point one way, from what is run down to facts (layers below, top first)."""

import ast
import fnmatch
import functools
import pathlib

import pytest

import infinity_jax

PACKAGE = pathlib.Path(infinity_jax.__file__).parent
CONFIGS = PACKAGE.parent / 'configs'

# A module imports from its own layer or lower ones, never in a circle. The lowest name that
# matches says where a module stands.
LAYERS = (
    (
        'main', 'cli', '*_command', 'sampling_flags', 'model_flags', 'config_flags', 'exits',
        'supervisor',
    ),
    ('convert_from_torch', 'convert_to_torch'),
    (
        'train', 'train_*', 'loop', 'run_config', 'run_batches', 'evaluate', 'evaluate_*',
        'inspect_*', 'check', 'check_*',
        'bench', 'bench_*', 'accumulate', 'precompute', 'precompute_*', 'abstract_*', 'plan',
        'plan_report', 'plan_drawing', 'plan_tokenizer',
    ),
    (
        'pipeline', 'drawing', 'draw_layerwise', 'draw_steps', 'generate', 'ahead',
        'memory_estimate', 'picture_size', 'placement', 'prompt_encoder',
    ),
    (
        'economy', 'self_correction', 'losses', 'sampling', 'checkpoint', 'optimizer', 'metrics',
        'matcher', 'pictures', 'data', 'throughput', 'lora', 'adapter_file', 'model_folder',
        'part_weights', 'run_folder', 'torch_*', 'perceptual_files', 'picture_metrics',
        'loss_level',
    ),
    (
        'text', 't5', 't5_folder', 'tokenizer', 'transformer', 'weight_files', 'weight_writer',
        'torch_pickle', 'torch_writer',
    ),
    (
        'config', 'scales', 'sharding', 'compile_cache', 'host_memory', 'hub', 'processes',
        'preemption', 'flops', 'device_peaks', 'programs', 'hlo_text', 'collectives', 'topology',
        'program_*',
    ),
)  # fmt: skip
MAY_KNOW_TORCH = ('torch_*', 'convert_*', 'weight_files', 'check', 'check_*', 'cli')


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


@functools.cache
def graph() -> dict[str, frozenset[str]]:
    """Module or subpackage of ours -> those of ours that it imports, by first component."""
    paths = {path: path.relative_to(PACKAGE).parts for path in PACKAGE.rglob('*.py')}
    edges: dict[str, set[str]] = {}
    for path, parts in paths.items():
        name = parts[0].removesuffix('.py')
        if name == '__init__':
            continue
        found = {
            n.split('.')[1] for n in imported(path.read_text()) if n.startswith('infinity_jax.')
        }
        edges.setdefault(name, set()).update(found - {name})
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
        if any(matches(name, ('torch_*',)) for name in found):
            assert matches(module, MAY_KNOW_TORCH), module


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda p: p.name)
def test_configs_import_nothing_of_the_package(path):
    assert not any(n.split('.')[0] == 'infinity_jax' for n in imported(path.read_text()))


def test_a_relative_or_nested_import_is_seen():
    assert imported('def f():\n    from infinity_jax.train import x') == {
        'infinity_jax.train',
        'infinity_jax.train.x',
    }
    with pytest.raises(AssertionError):
        imported('from . import x')
