"""Scores by the packages of ImageReward and HPSv2; stand-ins take the packages' place."""

import json
import sys
import types

import pytest

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.benchmarks.readers import READERS
from infinity_jax.tools.evaluation.report.results import find_results
from infinity_jax.tools.evaluation.report.scores import score_folder

STYLES = {'anime': ['a cat', 'a dog'], 'photo': ['a ghost', 'a car', 'a tree']}
ENTRIES = [{'id': str(i), 'prompt': f'prompt {i}'} for i in range(4)]


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


def imagereward_package(score):
    def load(name):
        assert name == 'ImageReward-v1.0'
        return types.SimpleNamespace(score=score)

    return types.SimpleNamespace(load=load)


def test_imagereward_scores_have_an_interval(tmp_path, monkeypatch, capsys):
    out = folder(tmp_path, 'imagereward', 2, ENTRIES)
    asked = []

    def score(prompt, paths):
        asked.append((prompt, [path[-7:] for path in paths]))
        return [float(prompt[-1]), float(prompt[-1]) + 1]

    monkeypatch.setitem(sys.modules, 'ImageReward', imagereward_package(score))
    main(['evaluate', 'score', str(out)])
    assert capsys.readouterr().out == f'{out}/imagereward_scores.json\n'
    assert asked[3] == ('prompt 3', ['3_0.jpg', '3_1.jpg'])
    (results,), problems = find_results(out)
    value, low, high = results.rows[0].estimate
    assert not problems and value == 2 and low < 2 < high and results.images == 8


def test_hpsv2_scores_are_averaged_by_style(tmp_path, monkeypatch):
    out = folder(tmp_path, 'hpsv2', 1, STYLES)

    def score(paths, prompt, hps_version):
        assert hps_version == 'v2.1' and len(paths) == 1
        return [0.3 if 'anime' in paths[0] else 0.2]

    monkeypatch.setitem(sys.modules, 'hpsv2', types.SimpleNamespace(score=score))
    score_folder(out)
    (results,), _ = find_results(out)
    assert [row.estimate.value for row in results.rows] == pytest.approx([30, 20, 25])
    assert [row.images for row in results.rows] == [2, 3, 5]


def test_what_cannot_be_scored_is_one_line(tmp_path, monkeypatch):
    out = folder(tmp_path, 'imagereward', 2, ENTRIES)
    monkeypatch.setitem(sys.modules, 'ImageReward', None)  # as if it were not installed
    with pytest.raises(UserError, match='package image-reward cannot be imported .*: pip install'):
        score_folder(out)
    scores = iter([[1.0], [1.0, float('nan')]])
    package = imagereward_package(lambda prompt, paths: next(scores))
    monkeypatch.setitem(sys.modules, 'ImageReward', package)
    for _ in range(2):
        with pytest.raises(UserError, match='0_0.jpg: scored .*; wanted a number for each image'):
            score_folder(out)
    (out / '0' / '0_1.jpg').unlink()
    with pytest.raises(UserError, match='0_1.jpg: absent; run evaluate imagereward again'):
        score_folder(out)
    (tmp_path / 'prompts.json').write_text(json.dumps(ENTRIES[:2]))
    with pytest.raises(UserError, match='prompts.json: not the prompts of'):
        score_folder(out)
    (out / 'run.json').write_text('{"benchmark": "geneval"}')
    with pytest.raises(UserError, match="of benchmark 'geneval'; scored here are imagereward"):
        score_folder(out)
