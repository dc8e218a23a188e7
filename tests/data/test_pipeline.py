import numpy as np
import pytest

from infinity_jax.data.config import DataConfig
from infinity_jax.data.pipeline import endless, training_batches
from infinity_jax.data.sources.emoji import EmojiSource
from infinity_jax.emoji import artwork, image_spec
from infinity_jax.emoji.scene import COLOURED, TASKS, Scene, scene_caption
from infinity_jax.emoji.scene_sampling import HELD_OUT_COLOURED, held_out_parts
from infinity_jax.errors import UserError


def same(a, b):
    return a.captions == b.captions and np.array_equal(a.pixels_BYX3, b.pixels_BYX3)


def test_an_example_depends_on_the_fields_and_the_index_alone():
    source, again = EmojiSource(seed=3), EmojiSource(seed=3)
    for i in (1234, 0, 99, 10**7):
        assert source.spec(i) == again.spec(i)
        assert np.array_equal(source[i].pixels_YX3, again[i].pixels_YX3)
    assert [source.spec(i) for i in range(20)] != [EmojiSource(seed=4).spec(i) for i in range(20)]


def test_an_epoch_shows_every_pair_once_and_the_next_one_in_a_new_order():
    source = EmojiSource('starter', 'train')
    pairs = image_spec.pairs('starter', 'train')
    first = [source.spec(i) for i in range(2 * len(pairs))]
    first, second = first[: len(pairs)], first[len(pairs) :]
    for epoch in (first, second):
        assert sorted((s.emoji, s.background) for s in epoch) == sorted(pairs)
    assert first != second
    assert set(first) != set(second)  # sizes, places and words are sampled again


def test_splits_do_not_overlap():
    for split, held_out in (('train', False), ('held_out', True)):
        source = EmojiSource('all', split)
        specs = [source.spec(i) for i in range(300)]
        assert {image_spec.is_held_out(s.emoji, s.background) for s in specs} == {held_out}


@pytest.mark.parametrize(('rate', 'placed'), [(0, 0), (1, 1)])
def test_placed_rate(rate, placed):
    source = EmojiSource('starter', 'train', placed_rate=rate)
    specs = [source.spec(i) for i in range(200)]
    placed_shares = [s.size != 'large' for s in specs if s.template == 'scene']
    assert np.mean(placed_shares) == placed


def test_a_share_of_the_images_are_scenes_and_the_others_are_as_without():
    source, without = EmojiSource('starter', scenes=0.4), EmojiSource('starter')
    specs = [source.spec(i) for i in range(300)]
    assert specs == [source.spec(i) for i in range(300)]
    scenes = [isinstance(spec, Scene) for spec in specs]
    assert 0.3 < np.mean(scenes) < 0.5
    others = [(spec, without.spec(i)) for i, spec in enumerate(specs) if not scenes[i]]
    assert all(spec == other for spec, other in others)
    assert {spec.task for spec in specs if isinstance(spec, Scene)} == set(TASKS)
    first = scenes.index(True)
    assert source[first].caption == source.caption(first) == scene_caption(specs[first])


def test_scenes_show_emoji_of_their_own_subset():
    specs = [EmojiSource('demo', scenes=0.5, scene_subset='starter').spec(i) for i in range(400)]
    starter = {*(each.name for each in artwork.subset('starter')), *COLOURED}
    in_scenes = {name for spec in specs if isinstance(spec, Scene) for name in spec.emoji}
    alone = {spec.emoji for spec in specs if not isinstance(spec, Scene)}
    assert in_scenes <= starter
    assert not alone <= starter
    with pytest.raises(UserError, match='none'):
        EmojiSource('demo', scene_subset='none')


def test_what_is_held_out_of_scenes_is_never_trained():
    trained = [EmojiSource('all', scenes=0.5).spec(i) for i in range(1500)]
    for spec in trained:
        if isinstance(spec, Scene):
            assert not held_out_parts(spec)
        else:
            assert spec.emoji not in HELD_OUT_COLOURED
    held_out = [EmojiSource('all', 'held_out', scenes=1).spec(i) for i in range(60)]
    assert all(len(held_out_parts(scene)) == 1 for scene in held_out)


def test_a_run_on_scenes_resumes_at_any_batch():
    data = DataConfig(scenes=0.8)
    iterator = training_batches(data, batch_size=4, seed=5)
    batches = [next(iterator) for _ in range(4)]
    resumed = training_batches(data, batch_size=4, seed=5)
    resumed.move_to(2)
    assert all(same(batch, next(resumed)) for batch in batches[2:])


def test_batch_layout():
    def tokenizer(texts, max_length, pad_to):
        return np.full((len(texts), pad_to), 7), np.full(len(texts), max_length)

    data = DataConfig(image_size=48)
    batch = next(training_batches(data, batch_size=4, text_tokenizer=tokenizer, text_length=9))
    assert batch.pixels_BYX3.shape == (4, 48, 48, 3) and batch.pixels_BYX3.dtype == np.uint8
    assert len(batch.captions) == 4 and all(isinstance(c, str) for c in batch.captions)
    assert batch.ids_BT.shape == (4, 9) and batch.ids_BT.dtype == np.int32
    assert batch.lengths_B.shape == (4,) and batch.lengths_B.dtype == np.int32


def test_any_batch_can_come_next():
    iterator = training_batches(batch_size=8, seed=5)
    batches = [next(iterator) for _ in range(6)]
    fresh = training_batches(batch_size=8, seed=5)
    for number in (3, 0, 4):  # unread, and read from before
        fresh.move_to(number)
        assert all(same(batches[number + i], next(fresh)) for i in range(2))


@pytest.mark.parametrize('count', [2, 4])
def test_the_slices_of_all_hosts_are_the_batches_of_one(count):
    whole = training_batches(batch_size=8, seed=5)
    hosts = [
        training_batches(batch_size=8, seed=5, process_index=host, process_count=count)
        for host in range(count)
    ]
    for _ in range(3):
        wanted, slices = next(whole), [next(host) for host in hosts]
        assert sum((s.captions for s in slices), []) == wanted.captions
        pixels = np.concatenate([s.pixels_BYX3 for s in slices])
        np.testing.assert_array_equal(pixels, wanted.pixels_BYX3)


def test_shuffle_differs_by_seed_and_epoch():
    dataset, other = (endless(range(64), seed) for seed in (0, 1))
    first, second = ([dataset[i + start] for i in range(64)] for start in (0, 64))
    assert sorted(first) == sorted(second) and first != second
    assert [other[i] for i in range(64)] != first


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'source': 'imagenet'}, "'imagenet'"),
        ({'subset': 'some'}, "'some'"),
        ({'split': 'test'}, "'test'"),
        ({'image_size': 60}, 'image_size 60'),
        ({'placed_rate': 1.5}, 'data.placed_rate is 1.5'),
        ({'scenes': -0.1}, 'data.scenes is -0.1'),
        ({'batch_size': 0}, 'batch_size 0'),
    ],
)
def test_bad_arguments_are_user_errors(arguments, message):
    known = {'batch_size': 4, 'split': 'train'}
    rest = {name: arguments.pop(name, value) for name, value in known.items()}
    with pytest.raises(UserError, match=message):
        training_batches(DataConfig(**arguments), **rest)


def test_batch_size_that_hosts_cannot_share_is_a_user_error():
    with pytest.raises(UserError, match='batch_size 4 .* 3 hosts'):
        training_batches(batch_size=4, process_index=0, process_count=3)
