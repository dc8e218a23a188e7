"""Images that come again are encoded once."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from infinity_jax.data.batch import Batch
from infinity_jax.sharding import make_mesh
from infinity_jax.training.transformer.encoded_once import (
    CHUNK,
    EncodedBatches,
    EncodedOnce,
    keeps_features,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


class Encoder:
    """Features (h, w, d) that are the image's own pixels; counts the images."""

    def __init__(self):
        self.encoded = 0

    def __call__(self, images):
        assert images.shape == (CHUNK, 8, 8, 3)
        self.encoded += len(images)
        return images.astype(np.float32)


def batch(*numbers):
    return Batch(pixels_BYX3=IMAGES[list(numbers)], lengths_B=np.arange(len(numbers)))


def test_each_image_is_encoded_when_it_comes_first():
    encoder = Encoder()
    once = EncodedOnce(encoder)
    for numbers, encoded in (((0, 1, 0, 2), 4), ((2, 1, 0, 0), 4), ((3, 3, 4, 1), 6)):
        found = once(batch(*numbers))
        np.testing.assert_array_equal(found.features_Bhwd, IMAGES[list(numbers)])
        assert found.features_Bhwd.dtype == np.float32 and found.pixels_BYX3 is None
        np.testing.assert_array_equal(found.lengths_B, np.arange(4))
        assert encoder.encoded == encoded  # three images fill two chunks


def test_a_chunk_has_images_for_every_device():
    encoded = []

    def encode(images):
        encoded.append(len(images))
        return images.astype(np.float32)

    features_Bhwd = EncodedOnce(encode, chunk=4)(batch(0, 1, 2, 3, 4)).features_Bhwd
    np.testing.assert_array_equal(features_Bhwd, IMAGES)
    assert encoded == [4, 4]


def test_images_beyond_the_memory_are_encoded_every_time():
    encoder = Encoder()
    once = EncodedOnce(encoder, max_bytes=2 * 4 * IMAGES[0].size)
    once(batch(0, 1, 2, 3))
    np.testing.assert_array_equal(once(batch(3, 0, 2, 1)).features_Bhwd, IMAGES[[3, 0, 2, 1]])
    assert encoder.encoded == 4 + 2


def test_stored_features_stay_as_they_are():
    stored = Batch(features_Bhwd=np.zeros((2, 1, 1, 4)))
    assert EncodedOnce(Encoder())(stored) is stored


def test_batches_are_replaced_and_closed():
    class Source:
        number = 0

        def __next__(self):
            return batch(self.number, self.number)

        def move_to(self, number):
            self.number = number

        def close(self):
            self.number = None

    source = Source()
    batches = EncodedBatches(source, EncodedOnce(Encoder()))
    batches.move_to(3)
    np.testing.assert_array_equal(next(batches).features_Bhwd, IMAGES[[3, 3]])
    batches.close()
    assert source.number is None


@pytest.mark.parametrize(
    ('encode_once', 'sources', 'scenes', 'devices', 'wanted'),
    [
        ('auto', (), 0.0, 1, True),
        ('never', (), 0.0, 1, False),
        ('auto', ('some',), 0.0, 1, False),
        ('auto', (), 0.5, 1, False),
        ('auto', (), 0.0, 8, True),
    ],
)
def test_features_are_kept_for_emoji_on_cpu_devices(encode_once, sources, scenes, devices, wanted):
    data = SimpleNamespace(sources=sources, scenes=scenes)
    config = SimpleNamespace(encode_once=encode_once, data=data)
    assert keeps_features(config, make_mesh(devices=jax.devices()[:devices])) == wanted
