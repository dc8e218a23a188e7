"""The description of a run: written, compared at a resume, stored in model folders."""

import dataclasses
import json

import pytest

from infinity_jax.config import TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.training.init_from import starting_state
from infinity_jax.training.run_folder import (
    changed_since,
    config_without_paths,
    differing_fields,
    write_description,
)


@dataclasses.dataclass(frozen=True)
class Run:
    run_dir: str = 'somewhere/private'
    init_from: str = 'somewhere/else'
    tokenizer: str | TokenizerConfig = 'a/path'
    steps: int = 3
    sources: tuple = ({'path': '/private', 'weight': 2.0},)


def test_a_model_folder_gets_the_configuration_without_paths():
    assert config_without_paths(Run()) == {'steps': 3, 'sources': [{'weight': 2.0}]}
    assert config_without_paths(Run(tokenizer=TokenizerConfig()))['tokenizer']['bits'] == 32


def test_the_description_is_the_whole_configuration(tmp_path):
    write_description(Run(), tmp_path / 'run')
    described = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert described == {**dataclasses.asdict(Run()), 'sources': [*Run.sources]}
    assert 'jax' in json.loads((tmp_path / 'run' / 'versions.json').read_text())


def test_an_unwritable_run_folder_is_a_user_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='config.run_dir'):
        write_description(Run(), tmp_path / 'file' / 'run')


@dataclasses.dataclass(frozen=True)
class Data:
    num_workers: int = 0
    subset: str = 'demo'


@dataclasses.dataclass(frozen=True)
class Resumed(Run):
    batch_size: int = 4
    data: Data = Data()
    lora: dict = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ('fields', 'line'),
    [
        ({}, ''),
        ({'run_dir': 'moved', 'data': Data(num_workers=3)}, ''),
        ({'steps': 5}, 'changed since this run was last started: steps 3 -> 5'),
        ({'batch_size': 8}, 'batch_size 4 -> 8; the coming data records differ'),
        ({'data': Data(subset='all')}, "data.subset 'demo' -> 'all'; the coming data records"),
        (
            {'init_from': 'b', 'lora': {'rank': 2}},
            'the adapters so far were trained on',
        ),
    ],
)
def test_a_resumed_run_lists_the_changes_of_its_configuration(tmp_path, fields, line):
    assert changed_since(Resumed(), tmp_path) == ''  # the first start
    write_description(Resumed(), tmp_path)
    printed = changed_since(Resumed(**fields), tmp_path)
    assert line in printed and bool(line) == bool(printed) and '\n' not in printed


def test_fields_in_which_runs_differ(tmp_path):
    runs = {
        'a': {'seed': 0, 'run_dir': 'a', 'steps': 3, 'data': {'num_workers': 0}, 'levels': 4},
        'b': {'seed': 1, 'run_dir': 'b', 'steps': 3, 'data': {'num_workers': 2}, 'new': 1,
              'max_scales': 4},
        'c': {'seed': 2, 'steps': 5, 'max_scales': 6},
    }  # fmt: skip
    for name, run in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').write_text(json.dumps(run))
    folder = {name: tmp_path / name for name in (*runs, 'none')}
    assert differing_fields([folder['a'], folder['b'], folder['none']]) == []
    assert differing_fields(folder.values()) == ['steps', 'max_scales']


def test_a_resume_that_does_not_fit_names_the_changed_fields(tmp_path):
    class OfOtherShapes:
        latest_step, folder = 4, tmp_path

        def restore_newest(self, abstract_state, say):
            raise UserError('opt_state.0.count is absent')

    for changes, message in (
        ('changed: optimizer.clip_norm', 'absent; changed: optimizer.clip_norm$'),
        ('', 'absent$'),
    ):
        with pytest.raises(UserError, match=message):
            starting_state(
                OfOtherShapes(), None, from_scratch=list, from_model=None,
                changes=lambda changes=changes: changes,
            )  # fmt: skip


@pytest.mark.parametrize(
    'text', [b'', b'[]', b'null', b'\xff\xfe', b'{"a": ' * 100_000, b'{"a": 1']
)
def test_a_damaged_description_is_one_line(tmp_path, text):
    (tmp_path / 'config.json').write_bytes(text)
    with pytest.raises(UserError, match='config.json.*; move that file away') as caught:
        changed_since(Resumed(), tmp_path)
    assert '\n' not in str(caught.value)
