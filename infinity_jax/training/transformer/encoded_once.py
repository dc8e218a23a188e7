"""Keeps the tokenizer's features of images that a run reads many times.

The embedded emoji make a few thousand different images, which a run sees again and again, and on a
CPU the frozen encoder takes a tenth of a small model's step. Here every image is encoded when it
comes for the first time. Images are known by a checksum of their pixels.
"""

import hashlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from infinity_jax.data.batch import Batch
from infinity_jax.data.pipeline import Batches
from infinity_jax.training.transformer.config import T2IConfig

MAX_BYTES = 2**28  # of features that are kept; images beyond it are encoded every time
CHUNK = 2  # images that a device encodes together: one program serves any number of new ones


def keeps_features(config: T2IConfig, mesh: Mesh) -> bool:
    """Whether a run encodes each image once.

    With `encode_once` 'auto' it does so in a single process on CPU devices with images of one emoji
    each. Scenes and other data rarely repeat an image with the same crop, and accelerators encode
    faster than a host looks up.
    """
    if config.encode_once == 'never' or config.data.sources or config.data.scenes:
        return False
    return not mesh.is_multi_process and mesh.devices.flat[0].platform == 'cpu'


class EncodedOnce:
    """Replaces the images of batches by their features; a new image is encoded and kept."""

    def __init__(
        self,
        encode: Callable[[np.ndarray], jax.Array],
        chunk: int = CHUNK,
        max_bytes: int = MAX_BYTES,
    ):
        """Starts without images.

        Args:
          encode: uint8 images (chunk, Y, X, 3) to features (chunk, h, w, d).
          chunk: images that are encoded together.
          max_bytes: of the features that are kept.
        """
        self._encode, self._chunk, self._room = encode, chunk, max_bytes
        self._kept: dict[bytes, np.ndarray] = {}

    def __call__(self, batch: Batch) -> Batch:
        """The host batch with `features_Bhwd` in place of `pixels_BYX3`."""
        images_BYX3 = batch.pixels_BYX3
        if images_BYX3 is None:
            return batch
        keys = [_key(image) for image in images_BYX3]
        rows = {key: row for row, key in enumerate(keys) if key not in self._kept}
        new = dict(zip(rows, self._features(images_BYX3[list(rows.values())]), strict=True))
        features_Bhwd = np.stack([new[key] if key in new else self._kept[key] for key in keys])
        for key, features_hwd in new.items():
            if features_hwd.nbytes <= self._room:
                self._kept[key] = features_hwd
                self._room -= features_hwd.nbytes
        return batch._replace(pixels_BYX3=None, features_Bhwd=features_Bhwd)

    def _features(self, images_NYX3: np.ndarray) -> Iterator[np.ndarray]:
        """Features (h, w, d) of each image; the last chunk is filled with its last image."""
        for start in range(0, len(images_NYX3), self._chunk):
            chunk = images_NYX3[start : start + self._chunk]
            filling = np.repeat(chunk[-1:], self._chunk - len(chunk), axis=0)
            yield from np.array(self._encode(np.concatenate([chunk, filling])))[: len(chunk)]


class EncodedBatches(Batches):
    """The batches of a run with features in place of images."""

    def __init__(self, batches: Batches, encoded: EncodedOnce):
        """Reads `batches`, which this object closes."""
        self._batches, self._encoded = batches, encoded

    def move_to(self, number: int) -> None:
        self._batches.move_to(number)

    def __next__(self) -> Batch:
        return self._encoded(next(self._batches))

    def close(self) -> None:
        self._batches.close()


def _key(image_YX3: np.ndarray) -> bytes:
    """A checksum of the image's size and pixels."""
    size = np.array(image_YX3.shape, np.int32).tobytes()
    return hashlib.blake2b(size + image_YX3.tobytes(), digest_size=16).digest()
