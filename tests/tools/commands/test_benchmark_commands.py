"""Flags of the benchmark commands."""

import sys

import pytest

from infinity_jax import cli
from infinity_jax.errors import UserError
from infinity_jax.runtime import supervisor
from infinity_jax.tools.commands.benchmark_commands import KINDS, NAMES, options_of
from infinity_jax.tools.evaluation.benchmarks.readers import READERS


def options(name, *flags):
    arguments = ['evaluate', name, '--prompts', 'p', '--out', 'o', *flags]
    return options_of(cli.build_parser().parse_args(arguments))


def test_defaults_are_those_of_the_published_figures():
    for name in NAMES:
        found = options(name)
        assert found.sampling.guidance == (4.0,) and found.sampling.temperature == (1.0,)
        assert found.seeds == ('image' if name in ('hpsv2', 'captions') else 'prompt')
        assert not any(found.model.values()) and found.max_batch is None
    assert {name: KINDS[name].num for name in NAMES} == {
        'geneval': 4, 'dpg': 4, 'imagereward': 10, 'hpsv2': 1, 'captions': 1,
    }  # fmt: skip
    assert list(READERS) == list(NAMES)


def test_flags_become_settings():
    flags = ['--cfg', '1,2', '--tau', '0.5', '--seeds', 'image', '--budget', '0.25M', '--seed', '7']
    found = options(
        'geneval', *flags, '--aspect-ratio', '1:1', '--max-batch', '3', '--dtype', 'bfloat16'
    )
    assert found.sampling.guidance == (1.0, 2.0) and found.sampling.temperature == (0.5,)
    assert (found.seeds, found.seed, found.max_batch) == ('image', 7, 3)
    given = {name: value for name, value in found.model.items() if value}
    assert given == {'height_over_width': 1.0, 'budget': '0.25M', 'dtype': 'bfloat16'}


def test_devices_of_a_host_are_all_unless_flags_name_them():
    assert options('geneval').mesh.shape['data'] == 8
    assert options('geneval', '--devices', '2').mesh.devices.size == 2
    split = options('geneval', '--mesh', 'data=2,tensor=2').mesh
    assert split.shape == {'data': 2, 'fsdp': 1, 'tensor': 2, 'sequence': 1}
    args = cli.build_parser().parse_args(
        'evaluate dpg --prompts p --out o --split-weights --mesh fsdp=2'.split()
    )
    with pytest.raises(UserError, match='--split-weights and --mesh are both given'):
        args.run(args)


@pytest.mark.parametrize('name', NAMES)
def test_a_benchmark_of_several_processes_is_supervised(monkeypatch, capsys, name):
    watched = []
    monkeypatch.setattr(supervisor, 'supervise', lambda: watched.append(name))
    arguments = ['evaluate', name, '--prompts', '/nowhere', '--out', 'o']
    monkeypatch.setattr(sys, 'argv', ['infinity-jax', *arguments])
    with pytest.raises(SystemExit, match='2'):
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert watched == [name] and '--prompts /nowhere: No such file or directory' in line


def test_an_interrupted_command_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    from infinity_jax.tools.evaluation.benchmarks import plan

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, 'plan_run', stopped)
    prompts = tmp_path / 'p.jsonl'
    prompts.write_text('{"text": "a cat"}')
    with pytest.raises(SystemExit, match='130'):
        cli.main(['evaluate', 'captions', '--prompts', str(prompts), '--out', str(tmp_path / 'o')])
    assert 'stopped; the same command goes on with the missing images' in capsys.readouterr().err
