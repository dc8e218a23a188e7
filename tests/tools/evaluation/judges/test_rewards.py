"""Scores by the packages of ImageReward and HPSv2; stand-ins take the packages' place."""

import json
import sys

import pytest

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.benchmarks.readers import READERS
from infinity_jax.tools.evaluation.judges.rewards import score_folder
from infinity_jax.tools.evaluation.report.find import find_results

STYLES = {'anime': ['a cat', 'a dog'], 'photo': ['a ghost', 'a car', 'a tree']}
ENTRIES = [{'id': str(i), 'prompt': f'prompt {i}'} for i in range(4)]
# What is printed must not mix with the answers.
IMAGEREWARD = """
class Model:
    def score(self, prompt, paths):
        print('scoring', prompt)
        assert [path.rsplit('_')[-1] for path in paths] == ['0.jpg', '1.jpg']
        return [float(prompt[-1]), float(prompt[-1]) + 1]

def load(name):
    print('load checkpoint')
    assert name == 'ImageReward-v1.0'
    return Model()
"""
HPSV2 = """
def score(paths, prompt, hps_version):
    assert hps_version == 'v2.1' and len(paths) == 1
    return [0.3 if 'anime' in paths[0] else 0.2]
"""


def folder(tmp_path, name, num, content):
    """A finished folder of a benchmark; its images are empty files."""
    prompts, out = tmp_path / 'prompts.json', tmp_path / 'out'
    prompts.write_text(json.dumps(content))
    benchmark = READERS[name](prompts, num, out)
    for item in benchmark.items:
        for file in item.files:
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).touch()
    run = {'benchmark': name, 'images_per_prompt': num}
    run['prompts'] = {'file': str(prompts), 'sha256': benchmark.digest}
    (out / 'run.json').write_text(json.dumps(run))
    return out


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a stand-in where the worker's Python finds it."""
    monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'packages'))

    def write(name, source):
        (tmp_path / 'packages').mkdir(exist_ok=True)
        (tmp_path / 'packages' / f'{name}.py').write_text(source)

    return write


def test_imagereward_scores_have_an_interval(tmp_path, package, capsys):
    out = folder(tmp_path, 'imagereward', 2, ENTRIES)
    package('ImageReward', IMAGEREWARD)
    main(['evaluate', 'score', str(out)])
    assert capsys.readouterr().out == f'{out}/imagereward_scores.json\n'
    (results,), problems = find_results(out)
    value, low, high = results.rows[0].estimate
    assert not problems and value == 2 and low < 2 < high and results.images == 8


def test_hpsv2_scores_are_averaged_by_style(tmp_path, package):
    out = folder(tmp_path, 'hpsv2', 1, STYLES)
    package('hpsv2', HPSV2)
    score_folder(out, sys.executable)
    (results,), _ = find_results(out)
    assert [row.estimate.value for row in results.rows] == pytest.approx([30, 20, 25])
    assert [row.images for row in results.rows] == [2, 3, 5]


@pytest.mark.parametrize(
    'source, message',
    [
        ('import no_such_package', 'image-reward: ModuleNotFoundError.*pip install image-reward'),
        ('import os; os._exit(3)', 'image-reward: it ended without an answer'),
        (IMAGEREWARD.replace(", float(prompt[-1]) + 1", ""), '0_0.jpg: scored .0.0.; wanted a'),
        (IMAGEREWARD.replace("+ 1", "+ float('nan')"), '0_0.jpg: scored .*; wanted a number for'),
    ],
)  # fmt: skip
def test_a_package_that_fails_is_one_line(tmp_path, package, source, message):
    out = folder(tmp_path, 'imagereward', 2, ENTRIES)
    package('ImageReward', source)
    with pytest.raises(UserError, match=message):
        score_folder(out)
    assert not (out / 'imagereward_scores.json').exists()


def test_what_cannot_be_scored_is_one_line(tmp_path):
    out = folder(tmp_path, 'imagereward', 2, ENTRIES)
    with pytest.raises(UserError, match='--python no/such/python: No such file or directory'):
        score_folder(out, 'no/such/python')
    (out / '0' / '0_1.jpg').unlink()
    with pytest.raises(UserError, match='0_1.jpg: absent, as are 1 of 8 images in all; run'):
        score_folder(out)
    (tmp_path / 'prompts.json').write_text(json.dumps(ENTRIES[:2]))
    with pytest.raises(UserError, match='prompts.json: not the prompts of'):
        score_folder(out)
    (out / 'run.json').write_text('{"benchmark": "geneval"}')
    with pytest.raises(UserError, match="of benchmark 'geneval'; scored here are imagereward"):
        score_folder(out)
