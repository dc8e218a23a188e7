"""The text that a prompt asks for and its score; the command with a stand-in for the reader."""

import json
import sys
import types

import numpy as np
import pytest
from helpers.data_folders import encoded

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.benchmarks.readers import READERS
from infinity_jax.tools.evaluation.judges import text
from infinity_jax.tools.evaluation.judges.text_rules import errors, score_text, wanted_text
from infinity_jax.tools.evaluation.report.find import find_results


@pytest.mark.parametrize(
    'prompt, wanted',
    [
        ('a sign that says "OPEN"', ('OPEN',)),
        ('a “first” and a ‘second’ word', ('first', 'second')),
        ("a cat's toy, the dogs' ball and 'Good Bread' on a sign", ('Good Bread',)),
        ('a mark "!?" without letters', ()),
        ('a red apple', ()),
    ],
)
def test_text_in_quotes_is_wanted(prompt, wanted):
    assert wanted_text(prompt) == wanted


@pytest.mark.parametrize(
    'wanted, lines, score',
    [
        (['OPEN'], ['open!', 'since 1990'], (1, 1, True)),
        (['Good Bread'], ['GoodBread'], (1, 0, False)),  # the space was not read
        (['Good Bread'], ['Good', 'Bread'], (1, 1, True)),
        (['open'], ['opan'], (3 / 4, 0, False)),
        (['open'], ['xxopqenxx'], (3 / 4, 0, False)),
        (['red', 'red'], ['red'], (1, 1 / 2, False)),
        (['open'], [], (0, 0, False)),
    ],
)
def test_scores_of_texts(wanted, lines, score):
    assert score_text(wanted, lines) == pytest.approx(score)


def test_errors_are_those_of_the_best_part():
    assert errors('abc', 'xxabcxx') == 0
    assert errors('abc', '') == 3
    assert errors('abcd', 'abd') == 1


def folder(tmp_path, prompts):
    """A finished folder of captions."""
    file, out = tmp_path / 'captions.jsonl', tmp_path / 'out'
    tmp_path.mkdir(exist_ok=True)
    file.write_text(''.join(json.dumps({'text': prompt}) + '\n' for prompt in prompts))
    benchmark = READERS['captions'](file, 1, out)
    (out / 'pred').mkdir(parents=True)
    for i, item in enumerate(benchmark.items):
        (out / item.files[0]).write_bytes(encoded(64, 64, i, 'PNG'))
    run = {'benchmark': 'captions', 'images_per_prompt': 1}
    run['prompts'] = {'file': str(file), 'sha256': benchmark.digest}
    (out / 'run.json').write_text(json.dumps(run))
    return out


@pytest.fixture
def reader(monkeypatch):
    """A stand-in that reads OPEN in every image."""

    class RapidOCR:
        def __init__(self, params):
            pass

        def __call__(self, pixels):
            assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
            return types.SimpleNamespace(txts=('OPEN',))

    monkeypatch.setitem(sys.modules, 'rapidocr', types.SimpleNamespace(RapidOCR=RapidOCR))
    monkeypatch.setitem(sys.modules, 'onnxruntime', types.SimpleNamespace())


def test_the_command_reads_the_images_of_prompts_with_text(tmp_path, reader, capsys):
    out = folder(tmp_path, ['"Open" on a door', 'a cat', 'a shop called "Oven" or "Open"'])
    main(['evaluate', 'text', str(out)])
    output = capsys.readouterr().out
    assert output.index('letters of 16 pixels') < output.index('text: text_scores.json')
    (results,), problems = find_results(out)
    found = {row.name: row.estimate.value for row in results.rows}
    assert not problems and results.images == 2
    assert found == {'characters': (1 + 7 / 8) / 2, 'words': 3 / 4, 'all words': 1 / 2}
    content = json.loads((out / 'text_scores.json').read_text())
    characters, exact = content['calibration']['letters of 4 pixels']
    assert exact == 1 / len(text.WORDS) and exact < characters < 0.7


def test_rendered_text_is_inside_the_image():
    for part in text.HEIGHTS:
        for seed, word in enumerate(text.WORDS):
            pixels = text.render(word, (64, 80), part, ('black', 'white'), seed)
            edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
            assert pixels.shape == (64, 80, 3) and (pixels < 200).any()
            assert np.mean(np.concatenate(edges) < 200) < 0.05, (part, word)


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    out = folder(tmp_path / 'a', ['a cat'])
    with pytest.raises(UserError, match='no prompt asks for text in quotes'):
        text.evaluate_text(out)
    out = folder(tmp_path / 'b', ['"Open"'])
    monkeypatch.setitem(sys.modules, 'rapidocr', None)
    (tmp_path / 'c').mkdir()
    for content, message in (
        ('{"benchmark": "geneval"}', "run.json lacks 'prompts'; wanted a folder that evaluate"),
        ('{"benchmark": "geneval", "prompts": [1]}', 'run.json: not the settings of a run'),
    ):
        (tmp_path / 'c' / 'run.json').write_text(content)
        with pytest.raises(UserError, match=message):
            text.evaluate_text(tmp_path / 'c')
    with pytest.raises(UserError, match=r"the package rapidocr .*: pip install 'infinity_jax\[ocr"):
        text.evaluate_text(out)
