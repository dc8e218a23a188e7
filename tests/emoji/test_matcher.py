import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter

from infinity_jax.emoji import artwork, image_spec
from infinity_jax.emoji.image_spec import ImageSpec
from infinity_jax.emoji.matcher import alternatives, evaluation_specs, match
from infinity_jax.emoji.render import render
from infinity_jax.errors import UserError
from infinity_jax.images import contact_sheet

STARTER = [each.name for each in artwork.subset('starter')]


def renders(specs, image_size=64):
    return np.stack([render(spec, image_size) for spec in specs])


@pytest.mark.parametrize('image_size', [48, 64, 128])
def test_true_renders_match(image_size):
    specs = evaluation_specs('starter', 'trained', 150)
    report = match(renders(specs, image_size), specs, STARTER)
    assert report.emoji_rate >= 0.98
    assert report.background_rate == 1


def test_true_renders_match_among_all():
    specs = evaluation_specs('all', 'held_out', 150)
    report = match(renders(specs), specs, [each.name for each in artwork.subset('all')])
    assert report.emoji_rate >= 0.98
    assert report.background_rate == 1


def test_noise_and_blur_match():
    specs = evaluation_specs('starter', 'trained', 150)
    images = renders(specs)
    noise = np.random.default_rng(0).normal(0, 40, images.shape)
    noisy = np.clip(images + noise, 0, 255).astype(np.uint8)
    blur = ImageFilter.GaussianBlur(1.5)
    blurred = np.stack([np.array(Image.fromarray(p).filter(blur)) for p in images])
    for damaged in (noisy, blurred):
        report = match(damaged, specs, STARTER)
        assert report.emoji_rate >= 0.97
        assert report.background_rate == 1


def test_pure_noise_does_not_match():
    specs = evaluation_specs('starter', 'trained', 150)
    noise = np.random.default_rng(0).integers(0, 256, (150, 64, 64, 3)).astype(np.uint8)
    report = match(noise, specs, STARTER)
    assert report.emoji_rate < 0.1


def test_a_wrong_emoji_and_a_wrong_background_are_distinguished():
    spec = ImageSpec('red apple', 'light blue')
    shown = [
        dataclasses.replace(spec, emoji='banana'),
        dataclasses.replace(spec, background='brown'),
        spec,
    ]
    report = match(renders(shown), [spec] * 3, STARTER)
    assert report.emoji_right.tolist() == [False, True, True]
    assert report.background_right.tolist() == [True, False, True]
    assert report.nearest_emoji == ('banana', 'red apple', 'red apple')
    assert report.nearest_background == ('light blue', 'brown', 'light blue')


def test_asked_place_counts_and_open_place_does_not():
    asked = ImageSpec('red apple', 'white', 'small', 'top left', True, True)
    silent = dataclasses.replace(asked, mention_size=False, mention_place=False)
    elsewhere = renders([dataclasses.replace(asked, place='bottom right')] * 2)
    report = match(elsewhere, [asked, silent], STARTER)
    assert report.emoji_right.tolist() == [False, True]
    assert alternatives(asked) == (('small', 'top left'),)
    assert len(alternatives(silent)) == 11


def test_distance_is_the_squared_difference_of_images():
    specs = [
        ImageSpec('ghost', 'purple'),
        ImageSpec('ghost', 'red', 'small', 'top left', True, True),
    ]
    shown = renders([ImageSpec('robot', 'purple'), ImageSpec('owl', 'red')])
    candidates = ['ghost', 'robot', 'owl', 'sun', 'red heart']
    report = match(shown, specs, candidates)
    for i, spec in enumerate(specs):
        options = [
            [dataclasses.replace(spec, emoji=name, size=size, place=place) for name in candidates]
            for size, place in alternatives(spec)
        ]
        squared = [
            ((renders(option).astype(float) - shown[i].astype(float)) ** 2).sum((1, 2, 3))
            for option in options
        ]
        assert report.nearest_emoji[i] == candidates[np.min(squared, 0).argmin()]


def test_background_that_was_not_asked_for_is_never_wrong():
    spec = ImageSpec('red apple', 'white', mention_background=False, template='name')
    shown = renders([dataclasses.replace(spec, background='green')])
    assert match(shown, [spec], STARTER).background_right.all()


def test_evaluation_specs_are_of_the_asked_pairs():
    for kind, held_out in (('trained', False), ('held_out', True)):
        specs = evaluation_specs('starter', kind, 120, seed=1)
        assert len(specs) == 120 and specs == evaluation_specs('starter', kind, 120, seed=1)
        assert {image_spec.is_held_out(s.emoji, s.background) for s in specs} == {held_out}
        assert all(s.mention_background for s in specs)


def test_bad_input_is_a_user_error():
    specs = [ImageSpec('red apple', 'white')]
    with pytest.raises(UserError, match='uint8'):
        match(np.zeros((1, 64, 64, 3), np.float32), specs, STARTER)
    with pytest.raises(UserError, match="'red apple'"):
        match(renders(specs), specs, ['banana'])
    with pytest.raises(UserError, match="'unseen'"):
        evaluation_specs('starter', 'unseen', 3)


def test_contact_sheet_marks_right_and_wrong():
    specs = evaluation_specs('starter', 'trained', 3)
    texts = [image_spec.caption(spec) for spec in specs]
    sheet = np.array(contact_sheet(renders(specs), texts, [True, False, True], columns=2))
    frames = sheet[8, 8], sheet[8, 148]
    assert frames[0].argmax() == 1 and frames[1].argmax() == 0  # green, red
