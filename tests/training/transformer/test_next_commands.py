"""The commands that a finished run names."""

import pathlib
import shlex

import pytest

from infinity_jax.cli import build_parser
from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.training.transformer.next_commands import next_commands

OWN = DataConfig(sources=(SourceConfig('jsonl', 'images'),))


@pytest.mark.parametrize(
    ('data', 'last'),
    [
        (DataConfig(), ['evaluate', 'demo']),
        (DataConfig(scenes=0.5), ['evaluate', 'scenes']),
        (OWN, ['generate', 'A PROMPT OF YOUR OWN']),
    ],
)
def test_three_commands_that_the_command_line_knows(data, last):
    title, *lines = next_commands(pathlib.Path('my runs/a/model'), data).splitlines()
    commands = [shlex.split(line.split(':', 1)[1]) for line in lines]
    assert title == 'next:'
    assert [command[1] for command in commands] == ['generate', 'serve', last[0]]
    assert commands[2][1:3] == last
    for command in commands:
        assert build_parser().parse_args(command[1:]).checkpoint == 'my runs/a/model'
