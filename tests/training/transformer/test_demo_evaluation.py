"""The demo evaluation on a tokenizer of random weights and a pipeline that makes no mistake."""

import json

import jax
import numpy as np
import pytest
from helpers.models import model_of
from helpers.stride4 import GRIDS, PARAMS, TOKENIZER
from PIL import Image

from infinity_jax.config import TransformerConfig
from infinity_jax.emoji.image_spec import caption
from infinity_jax.emoji.matcher import evaluation_specs
from infinity_jax.emoji.render import render
from infinity_jax.errors import UserError
from infinity_jax.inference.pipeline import GeneratedImages
from infinity_jax.scales import ScaleSchedule
from infinity_jax.training.transformer import demo_evaluation as evaluate
from infinity_jax.training.transformer import emoji_model

COUNT = 6


class PerfectPipeline:
    """Generates exactly the requested images, except the first one."""

    schedule = ScaleSchedule.free(GRIDS)

    def __init__(self, model, max_batch):
        specs = [s for kind in evaluate.PAIRS for s in evaluation_specs('starter', kind, COUNT)]
        self.renders = {caption(spec): render(spec, 16) for spec in specs}
        self.seconds = iter([5.0, 0.1])  # the first call compiles

    def __call__(self, prompts, *, seed, sampling):
        pixels = np.stack([self.renders[prompt] for prompt in prompts])
        pixels[0] = pixels[0, 0, 0]  # its background alone
        seeds = tuple((seed, i) for i in range(len(prompts)))
        return GeneratedImages(pixels, tuple(prompts), seeds, (next(self.seconds),))


@pytest.fixture
def loaded():
    return model_of(
        tokenizer_config=TOKENIZER,
        tokenizer_params=PARAMS,
        transformer_config=TransformerConfig(depth=1, width=16, num_heads=2, bits=4),
        schedule=ScaleSchedule.free(GRIDS),
        extra={'run': {'data': {'subset': 'starter'}}},
    )


@pytest.fixture
def perfect(loaded, monkeypatch):
    """Any folder has a model of random weights, and the perfect pipeline."""
    monkeypatch.setattr(emoji_model, 'load_model', lambda _: loaded)
    monkeypatch.setattr(emoji_model, 'place_model', lambda loaded, quantization, mesh: loaded)
    monkeypatch.setattr(emoji_model, 'InfinityPipeline', PerfectPipeline)


@pytest.mark.usefixtures('perfect')
def test_counts_what_is_right_and_leaves_table_and_sheet(tmp_path, capsys):
    results = evaluate.evaluate_demo('somewhere', count=COUNT, out=tmp_path)
    written = json.loads((tmp_path / 'evaluation.json').read_text())
    assert written['trained'] == results['trained']
    assert written['seconds_per_image'] == pytest.approx(0.1 / COUNT)
    assert Image.open(tmp_path / 'evaluation.png').width > 100
    for kind in evaluate.PAIRS:
        assert results[kind]['renders'] == {'emoji': 1.0, 'background': 1.0}
        assert results[kind]['generated']['emoji'] == pytest.approx(1 - 1 / COUNT)
        assert results[kind]['generated']['background'] == 1.0
        assert written[kind]['drawn'] == results[kind]['generated']  # its name in version 0.1
        assert np.isfinite(results[kind]['psnr'])
    printed = capsys.readouterr().out
    assert 'held_out  generated' in printed and 'drawn' not in printed


@pytest.mark.usefixtures('perfect')
def test_saves_renders_and_generated_images_under_equal_names(tmp_path):
    save = tmp_path / 'images'
    evaluate.evaluate_demo('somewhere', count=COUNT, out=tmp_path, save=save)
    true, generated = (
        np.stack([np.asarray(Image.open(path)) for path in sorted((save / name).iterdir())])
        for name in ('gt', 'pred')
    )
    differ = [number for number in range(2 * COUNT) if (true[number] != generated[number]).any()]
    assert differ == [0, COUNT]  # the first image of each kind of pairs is wrong
    with pytest.raises(UserError, match='has files in it'):
        evaluate.evaluate_demo('somewhere', count=COUNT, out=tmp_path, save=save)


def test_reconstruct_keeps_the_count_over_batches(loaded):
    images = np.zeros((emoji_model.BATCH + 3, 16, 16, 3), np.uint8)
    outputs, ratio = evaluate.reconstruct(loaded, ScaleSchedule.free(GRIDS), images)
    assert outputs.shape == images.shape and outputs.dtype == np.uint8
    assert jax.numpy.isfinite(ratio)


@pytest.mark.parametrize(('trained', 'evaluated'), [(0.0, 0.0), (0.1, 0.3), (None, 0.3)])
def test_sizes_and_places_are_asked_for_where_they_were_trained(trained, evaluated):
    data = {} if trained is None else {'placed_rate': trained}
    rate = emoji_model.evaluated_placed_rate(data)
    assert rate == evaluated
    specs = evaluation_specs('starter', 'trained', 60, placed_rate=rate)
    assert all(spec.size == 'large' for spec in specs) == (rate == 0)
    of_default = evaluation_specs('starter', 'trained', 60)
    assert [s.emoji for s in specs] == [s.emoji for s in of_default]


def test_no_images_are_refused():
    with pytest.raises(UserError, match='count is 0'):
        evaluate.evaluate_demo('somewhere', count=0)
