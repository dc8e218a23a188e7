import dataclasses
import json

import pytest

from infinity_jax.config import TokenizerConfig, UserError
from infinity_jax.run_folder import recipe, write_description


@dataclasses.dataclass(frozen=True)
class Run:
    run_dir: str = 'somewhere/private'
    init_from: str = 'somewhere/else'
    tokenizer: str | TokenizerConfig = 'a/path'
    steps: int = 3
    sources: tuple = ({'path': '/private', 'weight': 2.0},)


def test_a_recipe_holds_no_paths_but_keeps_sizes():
    assert recipe(Run()) == {'steps': 3, 'sources': [{'weight': 2.0}]}
    assert recipe(Run(tokenizer=TokenizerConfig()))['tokenizer']['bits'] == 32


def test_the_description_is_the_whole_configuration(tmp_path):
    write_description(Run(), tmp_path / 'run')
    described = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert described == {**dataclasses.asdict(Run()), 'sources': [*Run.sources]}
    assert 'jax' in json.loads((tmp_path / 'run' / 'versions.json').read_text())


def test_an_unwritable_run_folder_is_a_user_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='config.run_dir'):
        write_description(Run(), tmp_path / 'file' / 'run')
