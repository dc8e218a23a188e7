import collections

import numpy as np
import pytest

from infinity_jax.emoji import artwork
from infinity_jax.emoji.image_spec import is_held_out
from infinity_jax.emoji.scene import COLOURED, PAIR_LAYOUTS, TASKS, Scene, plural, scene_caption
from infinity_jax.emoji.scene_sampling import (
    HELD_OUT_COLOURED,
    candidates,
    held_out_parts,
    is_visible,
    sample_scene,
    scene_emoji,
)
from infinity_jax.errors import UserError

SIDES = ('left', 'right')


def samples(split, count=60, subset='starter'):
    return [
        sample_scene(np.random.default_rng((7, t, i)), task, subset, split)
        for t, task in enumerate(TASKS)
        for i in range(count)
    ]


def test_what_a_caption_leaves_open_is_in_reading_order():
    corners = ('top left', 'top right', 'bottom left', 'bottom right')
    layouts = {0: (), 1: ('centre',), 2: SIDES, 3: corners[:3], 4: corners}
    placed = [scene for scene in samples('train') if scene.task != 'position']
    assert {len(scene.places) for scene in placed} == set(layouts)
    assert all(scene.places == layouts[len(scene.places)] for scene in placed)
    positions = {scene.places for scene in samples('train') if scene.task == 'position'}
    assert positions == set(PAIR_LAYOUTS)


@pytest.mark.parametrize(
    ('scene', 'text'),
    [
        (Scene('single_object', ('owl',), 'red'), 'an owl'),
        (Scene('two_object', ('owl', 'fire'), 'red', SIDES), 'an owl and fire'),
        (Scene('counting', ('owl',), 'red', ('centre',)), 'one owl'),
        (
            Scene('counting', ('slice of pizza',) * 2, 'red', SIDES, True),
            'two slices of pizza on a red background',
        ),
        (Scene('colors', ('white heart',), 'red'), 'a white heart'),
        (Scene('position', ('owl', 'bus'), 'red', SIDES), 'an owl left of a bus'),
        (Scene('position', ('owl', 'bus'), 'red', SIDES[::-1]), 'an owl right of a bus'),
        (Scene('position', ('owl', 'bus'), 'red', ('top', 'bottom')), 'an owl above a bus'),
        (Scene('position', ('owl', 'bus'), 'red', ('bottom', 'top')), 'an owl below a bus'),
        (
            Scene('color_attr', ('red heart', 'blue book'), 'white', SIDES),
            'a red heart and a blue book',
        ),
    ],
)
def test_caption(scene, text):
    assert scene_caption(scene) == text


def test_plurals():
    names = ['maple leaf', 'butterfly', 'bus', 'snowman', 'tropical fish', 'monkey', 'light bulb']
    wanted = ['maple leaves', 'butterflies', 'buses', 'snowmen', 'tropical fish', 'monkeys']
    assert list(map(plural, names)) == [*wanted, 'light bulbs']
    assert plural('smiling face with sunglasses') == 'smiling faces with sunglasses'


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'task': 'texture'}, "task 'texture'"),
        ({'background': 'mauve'}, "background 'mauve'"),
        ({'emoji': ('owl', 'appel')}, "'appel'"),
        ({'places': ('left',)}, '2 emoji has 1 places'),
        ({'places': ()}, 'fills the image'),
        ({'places': ('left', 'far right')}, "'far right'"),
    ],
)
def test_bad_scenes_are_user_errors(fields, message):
    good = {'task': 'two_object', 'emoji': ('owl', 'bus'), 'background': 'red', 'places': SIDES}
    with pytest.raises(UserError, match=message):
        Scene(**{**good, **fields})


@pytest.mark.parametrize('wrong', [{'task': 'x'}, {'split': 'x'}, {'subset': 'x'}])
def test_unknown_names_are_user_errors(wrong):
    names = {'task': 'counting', 'subset': 'starter', 'split': 'train', **wrong}
    with pytest.raises(UserError, match="'x' is unknown"):
        sample_scene(np.random.default_rng(0), **names)


def test_the_emoji_in_colours_are_all_those_of_the_artwork():
    named = {each.name for each in artwork.subset('all')}
    kinds, colours = ({name.split()[part] for name in COLOURED} for part in (1, 0))
    assert named & {f'{colour} {kind}' for colour in colours for kind in kinds} == set(COLOURED)
    assert set(HELD_OUT_COLOURED) < set(COLOURED)
    assert not set(scene_emoji('starter')) & set(COLOURED)
    assert len(set(candidates('all'))) == len(named)


def test_the_grammar_of_each_task():
    scenes = samples('train')
    assert scenes == samples('train')  # a random state decides all
    by_task = collections.defaultdict(list)
    for scene in scenes:
        by_task[scene.task].append(scene)
        assert all(is_visible(name, scene.background) for name in scene.emoji)
    assert {len(s.emoji) for s in by_task['counting']} == {1, 2, 3, 4}
    assert all(len(set(s.emoji)) == 1 for s in by_task['counting'])
    assert {s.relation for s in by_task['position']} == {'left of', 'right of', 'above', 'below'}
    for scene in by_task['color_attr']:
        (colour, kind), (other_colour, other_kind) = (name.split() for name in scene.emoji)
        assert colour != other_colour and kind != other_kind
    for scene in by_task['two_object'] + by_task['position']:
        assert len(set(scene.emoji) - set(COLOURED)) == 2
    for scene in by_task['colors']:  # one that comes in colours, or a background in the caption
        assert scene.mention_background or scene.emoji[0] in COLOURED
    assert {s.emoji[0] in COLOURED for s in by_task['colors']} == {True, False}


def test_trained_and_held_out_scenes_share_no_combination():
    parts = {
        'two_object': 'pair', 'position': 'pair', 'color_attr': 'pair',
        'single_object': 'background', 'counting': 'count', 'colors': '',
    }  # fmt: skip
    pairs, counts = {'train': set(), 'held_out': set()}, {'train': set(), 'held_out': set()}
    for split in pairs:
        for scene in samples(split, 60):
            if len(set(scene.emoji)) == 2:
                pairs[split].add(frozenset(scene.emoji))
            if scene.task == 'counting':
                counts[split].add((len(scene.emoji), scene.emoji[0]))
            if split == 'train':
                assert not set(scene.emoji) & set(HELD_OUT_COLOURED)
                assert not any(is_held_out(name, scene.background) for name in scene.emoji)
            else:
                wanted = parts[scene.task] or (
                    'colour' if scene.emoji[0] in COLOURED else 'background'
                )
                assert held_out_parts(scene) == {wanted}
    assert pairs['train'] and not pairs['train'] & pairs['held_out']
    assert counts['train'] and not counts['train'] & counts['held_out']
