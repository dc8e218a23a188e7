"""The judge's rules, and `evaluate scenes` with a pipeline that makes no mistake but one."""

import dataclasses
import json

import numpy as np
import pytest
from helpers.models import model_of
from helpers.stride4 import PARAMS, TOKENIZER
from PIL import Image

from infinity_jax.config import TransformerConfig
from infinity_jax.emoji.render import render_scene
from infinity_jax.emoji.scene import TASKS, Scene, scene_caption
from infinity_jax.errors import UserError
from infinity_jax.inference.pipeline import GeneratedImages
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.evaluation import scenes as evaluate
from infinity_jax.tools.evaluation.scenes import evaluation_scenes, judge_images, scores
from infinity_jax.training.transformer import emoji_model

SIDES = ('left', 'right')
SIZE = 32
COUNT = 3
PAIR = Scene('two_object', ('owl', 'rocket'), 'pink', SIDES)
COLOURED = Scene('color_attr', ('red heart', 'blue square'), 'white', SIDES)
THREE = Scene('counting', ('owl',) * 3, 'pink', ('top left', 'top right', 'bottom left'))
FOUR = Scene('counting', ('owl',) * 4, 'pink', (*THREE.places, 'bottom right'))


def changed(scene, **fields):
    return dataclasses.replace(scene, **fields)


@pytest.mark.parametrize(
    ('asked', 'image', 'reason'),
    [
        (PAIR, PAIR, None),
        (PAIR, changed(PAIR, background='blue', places=('bottom', 'top')), None),
        (PAIR, changed(PAIR, emoji=('owl', 'bus')), 'rocket: 0 found, wanted 1'),
        (changed(PAIR, task='position'), PAIR, None),
        (
            changed(PAIR, task='position'),
            changed(PAIR, places=('right', 'left')),
            'owl: right of, wanted left of the rocket',
        ),
        (
            changed(PAIR, task='position', places=('top', 'bottom')),
            PAIR,
            'owl: left of, wanted above the rocket',
        ),
        (THREE, THREE, None),
        (THREE, FOUR, 'owl: 4 found, wanted fewer than 4'),
        (FOUR, THREE, 'owl: 3 found, wanted 4'),
        (COLOURED, changed(COLOURED, places=('top', 'bottom')), None),
        (
            COLOURED,
            changed(COLOURED, emoji=('blue heart', 'red square')),
            'heart: blue found, wanted 1 red',
        ),
        (
            Scene('colors', ('owl',), 'green', mention_background=True),
            Scene('colors', ('owl',), 'pink'),
            'background: pink, wanted green',
        ),
        (
            Scene('colors', ('green heart',), 'white'),
            Scene('colors', ('red heart',), 'white'),
            'heart: red found, wanted 1 green',
        ),
    ],
)
def test_rules(asked, image, reason):
    (judged,) = judge_images(render_scene(image)[None], [asked], 'starter')
    assert judged.verdict.correct == (reason is None)
    assert (reason is None) or judged.verdict.reasons[0] == reason


def test_scores_are_means_with_intervals_over_prompts():
    asked = [PAIR, PAIR, THREE, FOUR]
    images = np.stack([render_scene(scene) for scene in (PAIR, THREE, THREE, THREE)])
    result = scores(judge_images(images, asked, 'starter'))
    assert {name: row['value'] for name, row in result.items()} == {
        'two_object': 0.5, 'counting': 0.5, 'overall': 0.5,
    }  # fmt: skip
    assert result['overall']['images'] == 4
    assert result['counting']['low'] < 0.5 < result['counting']['high']


class PerfectPipeline:
    """Generates exactly the requested scenes, except the first one."""

    schedule, image_size = ScaleSchedule.free(((1, 1), (2, 2), (4, 4), (8, 8))), (SIZE, SIZE)

    def __init__(self, model, max_batch):
        scenes = [
            scene
            for kind, split in evaluate.SPLITS.items()
            for scene in evaluation_scenes('starter', split, evaluate.TASKS_OF[kind], COUNT, 0)
        ]
        self.renders = {scene_caption(scene): render_scene(scene, SIZE) for scene in scenes}

    def __call__(self, prompts, *, seed, sampling):
        pixels = np.stack([self.renders[prompt] for prompt in prompts])
        pixels[0] = 128
        seeds = tuple((seed, i) for i in range(len(prompts)))
        return GeneratedImages(pixels, tuple(prompts), seeds, (0.1,))


def test_table_json_and_sheet(tmp_path, monkeypatch, capsys):
    loaded = model_of(
        tokenizer_config=TOKENIZER,
        tokenizer_params=PARAMS,
        transformer_config=TransformerConfig(depth=1, width=16, num_heads=2, bits=4),
        schedule=PerfectPipeline.schedule,
        extra={'run': {'data': {'subset': 'starter'}}},
    )
    monkeypatch.setattr(emoji_model, 'load_model', lambda _: loaded)
    monkeypatch.setattr(emoji_model, 'place_model', lambda loaded, quantization, mesh: loaded)
    monkeypatch.setattr(emoji_model, 'InfinityPipeline', PerfectPipeline)
    results = evaluate.evaluate_scenes('somewhere', count=COUNT, out=tmp_path)
    assert json.loads((tmp_path / 'scenes.json').read_text())['trained'] == results['trained']
    assert Image.open(tmp_path / 'scenes.png').width > 100
    for kind, tasks in (('trained', TASKS), ('held_out', TASKS[1:])):
        assert list(results[kind]['generated']) == [*tasks, 'overall']
        assert results[kind]['renders']['overall']['value'] == 1
        missed = {n for n, row in results[kind]['generated'].items() if row['value'] < 1}
        assert missed == {tasks[0], 'overall'}
    printed = capsys.readouterr().out
    assert 'color_attr' in printed and printed.startswith((tmp_path / 'scenes.txt').read_text())


def test_no_images_are_refused():
    with pytest.raises(UserError, match='count is 0'):
        evaluate.evaluate_scenes('somewhere', count=0)
