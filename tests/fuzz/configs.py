"""Malformed config files and flags, read as training reads them before it loads any data."""

import dataclasses
import pathlib
import random
from collections.abc import Callable, Mapping
from typing import Any

import jax
from fuzz.harness import Case
from fuzz.values import at, changed, damaged_text, paths, replaced, same, short
from helpers.paths import CONFIGS, DEMO

from infinity_jax.data.buckets import make_buckets
from infinity_jax.sharding import make_mesh
from infinity_jax.tools.commands.config_flags import read_config_file
from infinity_jax.training.accumulate import check_parts
from infinity_jax.training.batches import check_batch, located_data
from infinity_jax.training.config import RunConfig
from infinity_jax.training.init_from import run_config
from infinity_jax.training.optimizer import make_optimizer, make_schedule
from infinity_jax.training.tokenizer import task as tokenizer_task
from infinity_jax.training.tokenizer.config import TokenizerRunConfig, check
from infinity_jax.training.transformer import step as transformer_step
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.training.transformer.parts import load_parts

# Spec of a shipped config -> the flags without which it names a folder that is not there.
SPECS = {
    'tokenizer.py': (),
    'tokenizer.py:d32_stage1': (),
    't2i.py': (),
    't2i.py:shipped': (),
    'finetune.py': (f'--config.init_from={DEMO}', '--config.data.image_size=64'),
    'finetune.py:lora': (f'--config.init_from={DEMO}', "--config.data.ratios=('1.000',)"),
    'finetune.py:demo_lora': (f'--config.init_from={DEMO}',),
}
# What a config file may be instead of one that defines get_config.
PROGRAMS = (
    'x = (', 'def get_config(:\n', 'import nope_nope\n', 'raise SystemExit(3)\n',
    'get_config = 5\n', 'def get_config(): return None\n',
    'def get_config(a=""): return {"task": "t2i"}\n', 'def get_config(a=""): return 1 / 0\n',
    'def get_config(a=""): return get_config()\n', 'def get_config(a, b): return None\n',
    'def get_config(a=""): exit()\n', 'class get_config: pass\n', '"' * 3, '\t\tx = 1\n',
    'from ml_collections import ConfigDict\ndef get_config(a=""): return ConfigDict()\n',
    'from ml_collections import ConfigDict\n'
    'def get_config(a=""): return ConfigDict({"task": "t2i", "data": 1})\n',
    'from ml_collections import FieldReference, ConfigDict\n'
    'def get_config(a=""): return ConfigDict({"task": FieldReference(None, field_type=str)})\n',
    'from ml_collections import ConfigDict\n'
    'def get_config(a=""): return ConfigDict({1: 2, "task": "tokenizer"})\n',
    'from ml_collections import ConfigDict\n'
    'def get_config(a=""):\n    c = ConfigDict({"task": "t2i"})\n    c.c = c\n    return c\n',
    'def get_config(a=""): raise UnicodeDecodeError("utf-8", b"x", 0, 1, "no\\nway")\n',
    'def get_config(a=""): assert False, "a\\nb"\n',
    'async def get_config(a=""): return None\n', '\x0c', 'ä = 1\n',
    '# -*- coding: nope -*-\nx = 1\n',
)  # fmt: skip
FLAGS = (
    '--config', '--config.', '--config.=1', '--config.steps', '--config.steps=', '--config..x=1',
    '--config.data.sources[0]=1', '--config.data.sources[7].path=x', '--config.data=1',
    "--config.data.sources=({'kind':'tar'},)", '--config.data.sources=(1,)', '--config.data={}',
    "--config.data.sources=({'kind':'jsonl','path':'/nope'},)", "--config.data.sources='x'",
    "--config.data.sources=({'kind':'nope','path':'/nope'},)", '--config.steps=1=2',
    "--config.data.sources=[{'kind':'emoji','weight':0}]", '--config.optimizer=None',
    '--config.data.held_out=(', '--config.data.ratios=(1,)',
    "--config.data.ratios=('1.000','1.000')",
    '--config.ste\0ps=1', '--config.stepps=1', '--config.steps.x=1', '--config.data[0]=1',
    '--config.mesh.data=0', '--config.mesh.data=-1', '--config.mesh.fsdp=7', '--config.__class__=1',
    '--config.items=1', '--config.keys=1', '--config.task.lower=1', '--config.data.update=1',
    '--config.text.encoder=None', '--config.transformer=None', '--config.run_dir=\0',
)  # fmt: skip


class ConfigFuzzer:
    """Cases of `--config=FILE --config.FIELD=VALUE`."""

    def __init__(self, folder: pathlib.Path):
        self.runs = {}
        for spec, flags in SPECS.items():
            if spec != 'finetune.py:lora':  # its complete form has all sizes of ratios
                config = run_config(read_config_file(str(CONFIGS / spec), flags))
                self.runs[spec] = dataclasses.asdict(config)

    def case(self, rng: random.Random, folder: pathlib.Path) -> Case:
        makers = (self._field, self._field, self._flag, self._flag, self._file, self._text)
        return rng.choice(makers)(rng, folder)

    def _field(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """A complete configuration with one or two fields of another value."""
        spec = rng.choice(list(self.runs))
        fields = self.runs[spec]
        edits = {}
        for path in rng.sample(paths(fields), rng.choice((1, 1, 1, 2))):
            edits[path] = changed(rng, at(fields, path))
        for path, value in edits.items():
            fields = replaced(fields, path.split('.'), value)
        file = folder / 'config.py'
        file.write_text(
            'from ml_collections import ConfigDict\n\nnan, inf = float("nan"), float("inf")\n\n\n'
            f'def get_config(arg=""):\n    return ConfigDict({fields!r})\n'
        )
        name = ', '.join(f'{path} = {short(value)}' for path, value in edits.items())
        return Case(f'{spec} {name}', lambda: _start(str(file), (), folder), _as_given(edits))

    def _flag(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """A shipped config with a flag of another value, or a malformed one."""
        spec = rng.choice(list(SPECS))
        flags, edits = list(SPECS[spec]), {}
        if rng.random() < 0.3:
            flags.append(rng.choice(FLAGS))
        else:
            fields = read_config_file(str(CONFIGS / spec)).to_dict()
            path = rng.choice(paths(fields))
            value = changed(rng, at(fields, path))
            flags.append(f'--config.{path}={value}')
        name = f'{spec} {short(flags[-1])}'
        return Case(name, lambda: _start(str(CONFIGS / spec), flags, folder), _as_given(edits))

    def _file(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """A shipped config file that was damaged."""
        spec = rng.choice(list(SPECS))
        name, _, variant = spec.partition(':')
        damage, content = damaged_text(rng, (CONFIGS / name).read_bytes())
        (folder / 'config.py').write_bytes(content)
        variant = rng.choice((variant, variant, 'nope', '', '\0', ':', '1'))
        place = f'{folder / "config.py"}:{variant}' if variant else str(folder / 'config.py')
        return Case(f'{name} {damage}', lambda: _start(place, SPECS[spec], folder))

    def _text(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """Another file in the place of a config, or a place without one."""
        program = rng.choice(PROGRAMS)
        file = folder / 'config.py'
        file.write_text(program, encoding='utf-8')
        place = rng.choice((str(file), str(file), str(file), f'{file}:x', str(folder), f'{file}x'))
        if place == f'{file}x':
            place = rng.choice(('', ':', '/dev/null', '\0', '/nope.py', 'x' * 5000))
        return Case(f'{place[-20:]!r} {program[-60:]!r}', lambda: _start(place, (), folder))


def _start(spec: str, flags: Any, folder: pathlib.Path) -> RunConfig:
    """Reads a config and begins the run: all that comes before weights are made or data read."""
    config = run_config(read_config_file(spec, flags))
    mesh = make_mesh(config.mesh)
    if isinstance(config, TokenizerRunConfig):
        check(config)
    check_batch(config, mesh)
    check_parts(config.batch_size, config.accumulate_steps, mesh)
    make_optimizer(config.optimizer, config.steps)
    make_schedule(config.optimizer, config.steps)
    if not config.data.index_dir:
        data = dataclasses.replace(config, run_dir=str(folder / 'run'))
    make_buckets(
        located_data(data if not config.data.index_dir else config),
        'train',
        smallest=config.batch_size,
        seed=config.seed,
    )
    jax.eval_shape(_state_of(config), jax.random.key(config.seed))
    return config


def _state_of(config: RunConfig) -> Callable[[jax.Array], Any]:
    """Makes the state before the first step of a run."""
    if isinstance(config, TokenizerRunConfig):
        model = tokenizer_task.make_model(config)
        return lambda key: tokenizer_task.init_state(key, model, config)
    assert isinstance(config, T2IConfig)
    models = transformer_step.make_models(config, load_parts(config).configs)
    return lambda key: transformer_step.init_state(key, models, config)


def _as_given(edits: Mapping[str, Any]) -> Callable[[Any], str]:
    """Judges whether the fields of a configuration have the values that were given."""

    def judge(config: RunConfig) -> str:
        fields = dataclasses.asdict(config)
        for path, value in edits.items():
            read = at(fields, path)
            if not same(value, read) and not isinstance(value, dict):
                return f'{path} was given as {short(value)}, and is {short(read)}'
        return ''

    return judge
