from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.generation import small_model
from helpers.serving import tiny_engine

from infinity_jax.errors import UserError
from infinity_jax.inference import generator as generator_module
from infinity_jax.inference.executables import Executables
from infinity_jax.inference.loading import ReadyModel
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.serving.engine import Dropped, Engine, default_group
from infinity_jax.serving.tasks import BatchGroup, ImageTask
from infinity_jax.weights.placement import place_model

PROMPTS = ('a red apple', 'a ghost on a blue background', 'a cat', 'a house')


def tasks(engine=None, negative=None, **sampling):
    engine = engine or tiny_engine()
    group = BatchGroup(engine.schedule, SamplingConfig(**sampling), negative is not None)
    return [ImageTask(group, prompt, 7 + i, i, negative) for i, prompt in enumerate(PROMPTS)]


def alone(which, **settings):
    return tiny_engine()([tasks(**settings)[which]])[0]


def test_an_image_is_the_same_alone_and_in_every_batch():
    engine = tiny_engine()
    first = engine(tasks())  # the larger size is compared with the smallest meanwhile
    assert engine.sizes.equal(engine._program(tasks()[0].group)) == (2, 4)
    again, three = engine(tasks()), engine(tasks()[:3])
    for i in range(4):
        assert np.array_equal(first[i], again[i]) and np.array_equal(first[i], alone(i))
    assert all(np.array_equal(image, first[i]) for i, image in enumerate(three))
    backwards = engine(tasks()[::-1])
    assert all(np.array_equal(image, first[3 - i]) for i, image in enumerate(backwards))


def test_two_threads_generate_the_same_images_and_compare_a_size_once():
    engine = Engine(ReadyModel(place_model(small_model()), 16, Executables()), (2, 4))
    assert engine.at_once == 2
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(engine, [tasks(engine), tasks(engine)]))
    assert all(map(np.array_equal, both[0], both[1]))
    assert all(map(np.array_equal, both[0], tiny_engine()(tasks())))
    assert engine.sizes.equal(engine._program(tasks()[0].group)) == (2, 4)


def test_one_batch_at_a_time_where_two_do_not_fit():
    engine = Engine(ReadyModel(place_model(small_model()), 7, Executables()), (2, 4))
    assert engine.at_once == 1


def test_seed_index_prompt_and_negative_prompt_matter():
    image, (task, *_) = alone(0), tasks()
    for change in ({'seed': 8}, {'index': 1}, {'prompt': 'a cat'}):
        other = ImageTask(**{**vars(task), **change})
        assert (tiny_engine()([other])[0] != image).any(), change
    assert (alone(0, negative='green') != image).any()


def test_a_size_that_generates_other_bytes_is_found_and_not_used(capsys):
    engine = Engine(ReadyModel(place_model(small_model()), 16, Executables()), (2, 4))
    plain = engine._batch

    def differs(tasks, start, size, previews):
        found = plain(tasks, start, size, previews)
        return [(codes + (size == 4), pixels) for codes, pixels in found]

    engine._batch = differs
    expected = tiny_engine()(tasks())
    for _ in range(2):
        assert all(map(np.array_equal, engine(tasks()), expected))
    assert engine.sizes.equal(engine._program(tasks()[0].group)) == (2,)
    assert capsys.readouterr().err.count('batch size 4 generates other bytes than 2') == 1


def test_previews_of_the_scales_that_were_asked_for_come_in_order():
    seen, images = [], tasks()[:2]
    images[1].preview_scales = frozenset({0, 1})
    images[1].on_preview = lambda scale, pixels: seen.append((scale, pixels))
    final = tiny_engine()(images)
    assert [scale for scale, _ in seen] == [0, 1]
    assert all(pixels.shape == final[1].shape and pixels.dtype == np.uint8 for _, pixels in seen)
    assert (seen[0][1] != seen[1][1]).any()


def test_a_batch_that_nobody_waits_for_stops_between_scales():
    images = tasks()[:2]
    images[0].preview_scales = frozenset({0, 1})
    seen = []

    def leave(scale, pixels):
        seen.append(scale)
        images[0].dropped = images[1].dropped = True

    images[0].on_preview = leave
    with pytest.raises(Dropped):
        tiny_engine()(images)
    assert seen == [0]


def test_a_part_that_nobody_waits_for_does_not_fail_the_rest_of_its_batch():
    engine = Engine(ReadyModel(place_model(small_model()), 16, Executables()), (2, 4))
    for _ in range(2):  # in parts of 2, with which 4 is compared
        images = tasks()
        images[0].dropped = images[1].dropped = True
        generated = engine(images)
        assert np.array_equal(generated[2], alone(2)) and np.array_equal(generated[3], alone(3))
    images = [*tasks(), *tasks()[:1]]
    for image in images[:4]:
        image.dropped = True  # all that another size would be compared for
    engine = Engine(ReadyModel(place_model(small_model()), 16, Executables()), (2, 4, 8))
    assert np.array_equal(engine(images)[4], alone(0))


def test_layer_by_layer_it_shows_the_same_scales(monkeypatch):
    monkeypatch.setattr(generator_module, 'LAYERWISE_BYTES', 0)
    engine = Engine(ReadyModel(place_model(small_model()), 16, Executables()), (2,))
    seen, images = [], tasks(engine)[:1]
    images[0].preview_scales = frozenset({0, 1})
    images[0].on_preview = lambda scale, pixels: seen.append(scale)
    (image,) = engine(images)
    assert engine._generator.layerwise and seen == [0, 1]
    assert (image == alone(0)).mean() > 0.9


def test_the_pipeline_generates_the_same_image():
    """With one scale that has no guidance, so that scales of both kinds are compared."""
    pipeline = InfinityPipeline(place_model(small_model()), max_batch=2)
    sampling = SamplingConfig(unguided_scales=1)
    expected = pipeline(['a red apple', 'a ghost'], seed=7, sampling=sampling).pixels[0]
    # Other programs: a bit on a knife's edge may fall otherwise.
    assert (alone(0, unguided_scales=1) == expected).mean() > 0.9


def test_a_warm_engine_has_compared_its_sizes():
    engine = Engine(ReadyModel(place_model(small_model()), 16, Executables()), (2, 4))
    lines = []
    engine.warm_up(default_group(engine), lines.append)
    assert lines == ['batch sizes that generate the same bytes: 2, 4']


def test_sizes_that_memory_has_no_room_for_are_left_out():
    engine = Engine(ReadyModel(place_model(small_model()), 3, Executables()), (2, 4, 8))
    assert engine.sizes.sizes == (2,)
    with pytest.raises(UserError, match='1 images fit into memory'):
        Engine(ReadyModel(place_model(small_model()), 1, Executables()), (2, 4))
