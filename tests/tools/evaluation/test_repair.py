"""`evaluate repair` on a tokenizer of random weights and a pipeline that repairs nothing."""

import json

import numpy as np
import pytest
from helpers.models import model_of
from helpers.stride4 import GRIDS, PARAMS, TOKENIZER
from PIL import Image

from infinity_jax.cli import main
from infinity_jax.config import TransformerConfig
from infinity_jax.emoji.image_spec import caption
from infinity_jax.emoji.matcher import evaluation_specs
from infinity_jax.emoji.render import render
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.evaluation import repair as evaluate
from infinity_jax.training.transformer import emoji_model

COUNT = 3


class Pipeline:
    """Generates the requested images without flips, and bare backgrounds with them."""

    schedule = ScaleSchedule.free(GRIDS)
    image_size = (16, 16)

    def __init__(self, model, max_batch):
        specs = [s for kind in evaluate.PAIRS for s in evaluation_specs('starter', kind, COUNT)]
        self.renders = {caption(spec): render(spec, 16) for spec in specs}

    def run(self, job):
        assert job.seeds == [(0, i) for i in range(COUNT)]
        for prompt in job.prompts:
            image = self.renders[prompt]
            yield (np.broadcast_to(image[:1, :1], image.shape) if job.flip_rate else image)[None]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    loaded = model_of(
        tokenizer_config=TOKENIZER,
        tokenizer_params=PARAMS,
        transformer_config=TransformerConfig(depth=1, width=16, num_heads=2, bits=4),
        schedule=ScaleSchedule.free(GRIDS),
        extra={'run': {'data': {'subset': 'starter'}}},
    )
    monkeypatch.setattr(emoji_model, 'load_model', lambda _: loaded)
    monkeypatch.setattr(emoji_model, 'place_model', lambda loaded, quantization, mesh: loaded)
    monkeypatch.setattr(emoji_model, 'InfinityPipeline', Pipeline)
    main(
        ['evaluate', 'repair', '--rates', '0,0.1,0.5', '--count', str(COUNT)]
        + ['--checkpoint', str(tmp_path), '--out', str(tmp_path)]
    )
    printed = capsys.readouterr().out
    assert 'true images, repaired' in printed and '100.0% (43.9% to 100.0%)' in printed
    return tmp_path


def test_figures_by_rate(run):
    rates = json.loads((run / 'repair.json').read_text())['rates']
    assert list(rates) == ['0', '0.1', '0.5']
    for kind in ('trained', 'held_out'):
        whole, bare = rates['0'][kind]['generated'], rates['0.5'][kind]['generated']
        assert whole['distance'] == 0 and bare['distance'] > 10
        assert whole['emoji'] == {'value': 1, 'low': pytest.approx(0.439, abs=0.001), 'high': 1}
        assert bare['emoji']['value'] < 1 == bare['background']['value']
        # Reconstructions: the same without flips, of which later scales can repair a part.
        none, some, half = (rates[rate][kind] for rate in rates)
        assert none['repaired'] == none['ignored']
        assert 0 < some['repaired']['distance'] < some['ignored']['distance']
        assert some['ignored']['distance'] < half['ignored']['distance']


def test_references_may_be_left_out(run, monkeypatch):
    monkeypatch.setattr(evaluate, '_references', None)
    results = evaluate.evaluate_repair(run, rates=(0.1,), references=False, count=COUNT, out=run)
    assert list(results['rates']['0.1']['trained']) == ['generated']


def test_the_sheet_has_a_row_per_caption_and_a_column_per_rate(run):
    sheet = Image.open(run / 'repair.png')
    assert sheet.width == 12 + 3 * 140 and sheet.height > 6 * 140
    height, green = (sheet.height - 12) // 6, (20, 160, 60)
    rates = json.loads((run / 'repair.json').read_text())['rates'].values()
    for column, kinds in enumerate(rates):
        frames = [sheet.getpixel((9 + 140 * column, 9 + height * row)) for row in range(6)]
        right = sum(kinds[kind]['generated']['emoji']['value'] * COUNT for kind in kinds)
        assert frames.count(green) == pytest.approx(right)
    assert (run / 'repair_rates.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--rates', '0,1.5'], 'the rate of flips is 1.5; wanted a probability, 0 to 1'),
        (['--rates', 'some'], "'some' is neither a number nor a list of them"),
        (['--count', '0'], 'count is 0; wanted 1 or more of each kind'),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(['evaluate', 'repair', *arguments])
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
