import json

import numpy as np
import pytest
from helpers.models import model_of

from infinity_jax.config import TransformerConfig
from infinity_jax.emoji.artwork import subset
from infinity_jax.emoji.image_spec import caption
from infinity_jax.emoji.render import render
from infinity_jax.inference.edit import EditedImages
from infinity_jax.tools.evaluation import edit_trials, edits
from infinity_jax.training.transformer import emoji_model

NAMES = [each.name for each in subset('starter')]
SIZE = 64


@pytest.mark.parametrize('make', edits.KINDS.values(), ids=edits.KINDS)
def test_what_an_edit_should_lead_to_is_right_and_its_source_is_not(make):
    trials = make('starter', 6, 0, SIZE)
    wanted = np.stack([render(trial.wanted, SIZE) for trial in trials])
    assert edits.right(wanted, trials, NAMES) == {'emoji': 1, 'background': 1, 'both': 1}
    sources = np.stack([np.asarray(trial.edit.image) for trial in trials])
    if make is not edit_trials.outpainting:
        assert edits.right(sources, trials, NAMES)['both'] == 0
    for trial, source, target in zip(trials, sources, wanted, strict=True):
        assert trial.wanted.emoji in trial.edit.prompt
        if trial.kept_YX is None:
            assert trial.edit.source_prompt == caption(trial.source)
        else:
            assert (source == target)[trial.kept_YX].all() and not trial.kept_YX.all()
            assert (trial.edit.mask == ~trial.kept_YX).all()


def test_psnr_of_the_chosen_pixels():
    a, b = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 51, np.uint8)
    b[0, 0, 0] = 255
    where = np.ones((2, 2), bool)
    where[0, 0] = False
    assert edits.psnr(a, b, [where]) == pytest.approx(20 * np.log10(5))


class FakePipeline:
    """Returns the source at strength 0 and a grey image at strength 1, and mixes them between."""

    schedule, image_size = range(4), (SIZE, SIZE)

    def __init__(self, *_, **__):
        pass

    def edit(self, listed, *, seed, sampling):
        results = []
        for edit in listed:
            strength = 0.5 if edit.strength is None else edit.strength
            mixed = np.asarray(edit.image) * (1 - strength) + 128 * strength
            results.append(edit.read().finish(np.rint(mixed).astype(np.uint8)))
        return EditedImages(tuple(results), ('',) * len(listed), ((0, 0),) * len(listed))


def test_figures_examples_and_a_plot_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_model, 'InfinityPipeline', FakePipeline)
    monkeypatch.setattr(emoji_model, 'place_model', lambda loaded, quantization, mesh: loaded)
    loaded = model_of(transformer_config=TransformerConfig(depth=1, width=16, num_heads=2))
    monkeypatch.setattr(emoji_model, 'load_model', lambda folder: loaded)
    results = edits.evaluate_edits(count=2, subset='starter', out=tmp_path)
    assert results == json.loads((tmp_path / 'edits.json').read_text())
    assert results['inpainting']['kept exactly'] == 1
    assert results['inpainting']['psnr of the reconstructed source'] > 70
    rows = results['variation']
    assert [row['strength'] for row in rows] == [0, 0.25, 0.5, 0.75, 1]
    assert rows[0]['to source'] == 0 and rows[-1]['to free generation'] == 0
    assert (np.diff([row['to source'] for row in rows]) > 0).all()
    assert (tmp_path / 'edits.png').is_file() and (tmp_path / 'edits_strength.png').is_file()
    assert 'inpainting, outside of the mask: 100.0% kept exactly' in edits.table(results)
