import numpy as np
import pytest

from infinity_jax.emoji.render import render_scene
from infinity_jax.emoji.scene import TASKS, Scene
from infinity_jax.emoji.scene_sampling import candidates, sample_scene
from infinity_jax.emoji.scene_search import search
from infinity_jax.errors import UserError

STARTER = candidates('starter')


def of_task(task, count, subset='starter'):
    rng = np.random.default_rng(TASKS.index(task))
    return [sample_scene(rng, task, subset, 'train') for _ in range(count)]


def shown(scene):
    return scene.background, sorted(zip(scene.emoji, scene.places or (None,), strict=True), key=str)


def seen(sight):
    return sight.background, sorted(((f.emoji, f.place) for f in sight.found), key=str)


@pytest.mark.numeric
@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('image_size', [64, 128])
def test_true_renders_are_seen_as_they_are(task, image_size):
    scenes = of_task(task, 50)
    images = np.stack([render_scene(scene, image_size) for scene in scenes])
    sights = search(images, STARTER)
    right = [seen(sight) == shown(scene) for sight, scene in zip(sights, scenes, strict=True)]
    assert np.mean(right) >= 0.98
    assert sights[0].found[0].explained == pytest.approx(1, abs=0.01 if image_size == 64 else 0.1)


@pytest.mark.numeric
def test_noise_on_an_image_hides_nothing_and_shows_nothing():
    scenes = of_task('two_object', 25)
    renders = np.stack([render_scene(scene) for scene in scenes])
    bare = np.full_like(renders, 128)
    rng = np.random.default_rng(0)
    noisy, blank = (
        np.clip(images + rng.normal(0, 12, images.shape), 0, 255).astype(np.uint8)
        for images in (renders, bare)
    )
    sights = search(noisy, STARTER)
    right = [seen(sight) == shown(scene) for sight, scene in zip(sights, scenes, strict=True)]
    assert np.mean(right) >= 0.95
    assert [seen(sight) for sight in search(blank, STARTER)] == [('grey', [])] * 25


def test_an_object_between_the_places_of_the_grammar_s_layouts_is_found():
    scene = Scene('two_object', ('owl', 'rocket'), 'pink', ('top left', 'right'))
    (sight,) = search(render_scene(scene)[None], STARTER)
    assert seen(sight) == shown(scene)
    assert sight.found[0].box == (2, 2, 30, 30)


def test_images_of_another_type_or_shape_are_user_errors():
    for images in (np.zeros((1, 64, 64, 3)), np.zeros((1, 64, 32, 3), np.uint8)):
        with pytest.raises(UserError, match='wanted uint8'):
            search(images, STARTER)
