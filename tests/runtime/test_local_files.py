"""Paths that cannot be, and files that are none."""

import os

import pytest

from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.local_files import can_be_path, check_path, open_regular
from infinity_jax.training.transformer.config import TextTraining
from infinity_jax.weights.torch_file.reader import read_torch_file
from infinity_jax.weights.weight_files import open_safetensors, read_json

NO_PATHS = ('', 'a\0b', 'x' * 5000, '\ud800')


def test_which_texts_can_be_paths():
    for text in ('a', 'ä/🍎', '\udcff', 'x' * 4096):  # \udcff: a byte that is no UTF-8
        assert can_be_path(text)
        check_path(text, 'x')
    for text in NO_PATHS:
        assert not can_be_path(text)
        with pytest.raises(
            UserError, match="^config field x is '.*'…?; wanted a path of 1 to 4096"
        ):
            check_path(text, 'config field x')


@pytest.mark.parametrize('text', NO_PATHS[1:], ids=ascii)
def test_fields_that_hold_paths_are_checked(text):
    for make, name in (
        (lambda: TextTraining(folder=text), 'text.folder'),
        (lambda: DataConfig(index_dir=text), 'data.index_dir'),
        (lambda: SourceConfig('jsonl', path=text), 'data.sources.path'),
        (lambda: SourceConfig('jsonl', path='x', images=text), 'data.sources.images'),
    ):
        with pytest.raises(UserError, match=f'config field {name} is '):
            make()


@pytest.mark.parametrize('read', [open_regular, read_json, read_torch_file, open_safetensors])
def test_what_is_no_regular_file_is_refused_without_waiting(read, tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'loop').symlink_to('loop')
    (tmp_path / 'zero').symlink_to('/dev/zero')
    for name, problem in (
        ('pipe', 'is a pipe or device'),
        ('zero', 'is a pipe or device'),
        ('.', 'is a folder'),
        ('loop', 'cannot be read'),
        ('nope', 'no such file'),
        ('x' * 300, 'cannot be read'),
    ):
        with pytest.raises(UserError, match=problem):
            read(tmp_path / name)
