import itertools
import re

import numpy as np
import pytest

from infinity_jax.emoji import artwork, image_spec
from infinity_jax.emoji.image_spec import ImageSpec, caption
from infinity_jax.errors import UserError


@pytest.mark.parametrize(
    'spec, text',
    [
        (ImageSpec('red apple', 'light blue'), 'a red apple on a light blue background'),
        (
            ImageSpec('red apple', 'light blue', 'small', 'top left', True, True),
            'a small red apple in the top left corner on a light blue background',
        ),
        (
            ImageSpec('owl', 'orange', 'medium', 'centre', mention_place=True),
            'an owl in the middle on an orange background',
        ),
        (
            ImageSpec('owl', 'red', 'medium', mention_size=True),
            'a medium-sized owl on a red background',
        ),
        (ImageSpec('grapes', 'white'), 'grapes on a white background'),
        (
            ImageSpec('bread', 'red', 'small', mention_size=True),
            'small bread on a red background',
        ),
        (ImageSpec('unicorn', 'red'), 'a unicorn on a red background'),
        (ImageSpec('hourglass', 'red'), 'an hourglass on a red background'),
        (ImageSpec('x-ray picture', 'red'), 'an x-ray picture on a red background'),
        (ImageSpec('owl', 'red', mention_background=False), 'an owl'),
        (ImageSpec('owl', 'red', mention_background=False, template='name'), 'owl'),
    ],
)
def test_caption(spec, text):
    assert caption(spec) == text


@pytest.mark.parametrize(
    'fields',
    [
        {'background': 'mauve'},
        {'size': 'huge'},
        {'place': 'left'},
        {'template': 'poem'},
        {'place': 'top left'},  # large
        {'template': 'name'},  # mentions the background
        {'emoji': 'appel'},
    ],
)
def test_bad_spec_is_a_user_error(fields):
    with pytest.raises(UserError):
        ImageSpec(**{'emoji': 'owl', 'background': 'red', **fields})


def test_nearest_background_is_unambiguous():
    colours = [np.array(colour) for colour in image_spec.BACKGROUNDS.values()]
    assert len(colours) >= 10
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)) > 105


@pytest.mark.parametrize('subset', artwork.SUBSETS)
def test_a_tenth_of_the_pairs_is_held_out_and_every_emoji_is_trained(subset):
    train, held_out = image_spec.pairs(subset, 'train'), image_spec.pairs(subset, 'held_out')
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == len(artwork.subset(subset)) * len(image_spec.BACKGROUNDS)
    assert 0.08 < len(held_out) / (len(train) + len(held_out)) < 0.12
    trained = [name for name, _ in train]
    assert min(trained.count(each.name) for each in artwork.subset(subset)[:200]) >= 4
    assert {each.name for each in artwork.subset(subset)} == set(trained)


def test_held_out_pairs_never_change():
    # Shipped weights never saw these pairs; another hash would test them on trained ones.
    held_out = image_spec.pairs('starter', 'held_out')
    assert held_out[:3] == (('red apple', 'green'), ('banana', 'red'), ('grapes', 'purple'))
    assert len(held_out) == 92


def test_sampled_specs_follow_the_stated_rates():
    rng = np.random.default_rng(0)
    specs = [image_spec.sample_spec(rng, 'owl', 'red', placed_rate=0.3) for _ in range(4000)]
    rate = lambda chosen, among: sum(map(chosen, among)) / len(among)  # noqa: E731
    assert abs(rate(lambda s: s.template == 'name', specs) - 0.1) < 0.02
    placed = [s for s in specs if s.size != 'large']
    assert abs(len(placed) / len(specs) - 0.9 * 0.3) < 0.03
    assert abs(rate(lambda s: s.mention_size, placed) - 0.85) < 0.03
    assert abs(rate(lambda s: s.mention_place, placed) - 0.85) < 0.03
    assert not any(s.mention_size or s.mention_place for s in specs if s.size == 'large')


def test_no_caption_says_a_before_a_vowel_letter_by_mistake():
    odd = set()
    for each in artwork.subset('all'):
        text = caption(ImageSpec(each.name, 'red'))
        if re.match(r'a [aeiou]', text) or re.match(r'an [^aeiou]', text):
            odd.add(each.name)
    assert odd == {'unicorn', 'ewe', 'euro banknote', 'hourglass', 'x-ray picture'}
