"""Every flag and field that names a path: schemes that are not read give one line and no folder."""

import argparse
import os
import pathlib

import pytest
from helpers.paths import CONFIGS
from helpers.store import contents, memory_store, upload

from infinity_jax.cli import build_parser, main
from infinity_jax.errors import UserError
from infinity_jax.runtime.remote import is_remote
from infinity_jax.tools.commands.config_flags import read_config_file
from infinity_jax.tools.commands.flag_types import (
    input_path,
    local_outputs,
    local_path,
    output_path,
    path,
)
from infinity_jax.tools.commands.generation_flags import adapter_path
from infinity_jax.training.init_from import run_config

PATHS = ('DIR', 'FILE', 'PATH', 'IMAGE', 'PNG', 'NPZ')
FIELDS = {
    't2i.py': ('run_dir', 'init_from', 'tokenizer', 'text.folder', 'data.index_dir'),
    'tokenizer.py': ('run_dir', 'init_from', 'vgg_weights', 'lpips_heads', 'data.index_dir'),
}
BAD = ('bad-scheme://x', 'gs:/x', 'gs:x', 'file:///x')
store = pytest.fixture(memory_store)


def path_flags():
    """(words of the command, action, it and the required ones) of each flag of a path."""

    def of(parser, words):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    yield from of(child, [*words, name])
            elif any(name in str(action.metavar) for name in PATHS) and words != ['train']:
                yield words, action, [a for a in parser._actions if a.required or a is action]

    return list(of(build_parser(), []))


def command(words, action, required, value):
    argv, value = list(words), f'a={value}' if action.metavar == 'NAME=DIR' else value
    for each in required:
        other = next(iter(each.choices)) if each.choices else '1'
        argv += [*each.option_strings[:1], value if each is action else other]
    return argv


@pytest.mark.parametrize('bad', BAD)
def test_no_flag_makes_a_folder_named_like_a_scheme(bad, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = path_flags()
    assert len(flags) > 50
    for words, action, required in flags:
        with pytest.raises(SystemExit) as stop:
            main(command(words, action, required, bad))
        printed = capsys.readouterr().err
        assert (stop.value.code, printed.count('\n')) == (2, 1), (words, action.dest, printed)
        assert bad in printed and 'wanted' in printed, (words, action.dest, printed)
        assert os.listdir(tmp_path) == [], (words, action.dest)


@pytest.mark.parametrize('bad', BAD)
@pytest.mark.parametrize('file', FIELDS)
def test_no_field_takes_a_bad_scheme(bad, file):
    for field in FIELDS[file]:
        with pytest.raises(UserError, match=f'config field {field} is {bad}; wanted'):
            run_config(read_config_file(str(CONFIGS / file), [f'--config.{field}={bad}']))


def test_a_flag_for_this_machine_names_the_store(capsys):
    for words, action, required in path_flags():
        if action.type is local_path:
            with pytest.raises(SystemExit):
                main(command(words, action, required, 's3://bucket/x'))
            assert 's3://bucket/x, which only works on this machine' in capsys.readouterr().err
        elif action.metavar != 'NAME=DIR':
            known = (path, input_path, output_path, adapter_path)
            assert action.type in known, (words, action.dest)


def test_inputs_are_copied_and_outputs_are_sent(store, tmp_path, capsys):
    (tmp_path / 'lines.jsonl').write_text('{}')
    upload(tmp_path, store)
    copy = input_path(f'{store}/lines.jsonl')
    assert copy.endswith('/lines.jsonl') and open(copy).read() == '{}'
    args = argparse.Namespace(json=output_path(f'{store}/new/a.json'), out='out', num=1)
    with local_outputs(args):
        assert not is_remote(args.json) and args.out == 'out'
        pathlib.Path(args.json).write_text('{"a": 1}')
    assert contents(f'{store}/new') == {'a.json': b'{"a": 1}'}
    assert capsys.readouterr().out == f'copied to {store}/new/a.json\n'
