"""Encodes images and captions with the frozen networks, in batches of a fixed size."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infinity_jax.config import required
from infinity_jax.data.features.reader import TextInfo
from infinity_jax.images import from_uint8
from infinity_jax.sharding import batch_sharding, in_mesh, replicated
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.weights.model_folder import LoadedModel
from infinity_jax.weights.placement import place_text_encoder

PADDED_LENGTHS = (64, 192)  # tokens, next to the model's own text length


class Encoders:
    """The tokenizer's encoder and the text encoder on a mesh, each compiled once per shape."""

    def __init__(
        self, loaded: LoadedModel, mesh: Mesh, batch_size: int, dtype: str, text: TextInfo | None
    ):
        """Puts the weights on the devices.

        Args:
          loaded: the run's frozen parts.
          mesh: devices of this process; a batch is split over them.
          batch_size: rows of a compiled call; a smaller batch is padded.
          dtype: of the returned features.
          text: length and dtype of text features; None: captions are not encoded.
        """
        self._batch_size, self._batch_sharding = batch_size, batch_sharding(mesh)
        self._text, self._tokenizer = text, loaded.text_tokenizer
        autoencoder = Autoencoder(required(loaded.configs.tokenizer, 'tokenizer'))
        tokenizer_params = required(loaded.tokenizer_params, 'tokenizer')
        encoder = {'encoder': tokenizer_params['encoder']}
        self._encoder_params = jax.device_put(encoder, replicated(mesh))

        def encode_pixels(params: Any, pixels_BYX3: jax.Array) -> jax.Array:
            pixels = from_uint8(pixels_BYX3)
            features = autoencoder.apply({'params': params}, pixels, method=Autoencoder.encode)
            return cast(jax.Array, features).astype(dtype)

        self._encode_pixels = in_mesh(mesh, jax.jit(encode_pixels))
        if text is None:
            return
        config = required(loaded.configs.text, 'text encoder')
        t5 = T5Encoder(config, jnp.dtype(loaded.configs.text_products))  # as in training
        text_params = required(loaded.text_params, 'text encoder')
        self._text_params = place_text_encoder(text_params, loaded.configs, mesh)

        def encode_text(params: Any, ids_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
            text_BTE = t5.apply({'params': params}, ids_BT, lengths_B)
            return cast(jax.Array, text_BTE).astype(text.dtype)

        self._encode_text = in_mesh(mesh, jax.jit(encode_text))

    def images(self, pixels_BYX3: np.ndarray) -> Callable[[], np.ndarray]:
        """Starts to encode up to `batch_size` images; the result waits for (n, h, w, d)."""
        if not len(pixels_BYX3):
            return lambda: np.zeros(0)
        rows = self._rows(pixels_BYX3)
        features = self._encode_pixels(self._encoder_params, rows)
        return lambda: np.asarray(features)[: len(pixels_BYX3)]

    def captions(self, texts: Sequence[str]) -> Callable[[], list[np.ndarray]]:
        """Starts to encode captions; the result waits for the text features (T, E) of each."""
        if self._text is None or self._tokenizer is None or not texts:
            return list
        limit = self._text.length
        ids_NT, lengths_N = self._tokenizer(list(texts), limit, limit)
        columns_N = np.array([_padded(length, limit) for length in lengths_N])
        started = []
        for columns in np.unique(columns_N):
            numbers = np.flatnonzero(columns_N == columns)
            for i in range(0, len(numbers), self._batch_size):
                own = numbers[i : i + self._batch_size]
                rows = self._rows(ids_NT[own, :columns]), self._rows(lengths_N[own])
                started.append((own, self._encode_text(self._text_params, *rows)))

        def wait() -> list[np.ndarray]:
            features: list[Any] = [None] * len(texts)
            for own, text_BTE in started:
                for number, text_TE in zip(own, np.asarray(text_BTE), strict=False):
                    features[number] = text_TE[: lengths_N[number]]
            return features

        return wait

    def _rows(self, rows: np.ndarray) -> jax.Array:
        """Puts a whole batch on the devices; the last row is repeated where rows are missing."""
        missing = self._batch_size - len(rows)
        whole = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
        return jax.device_put(whole, self._batch_sharding)


def _padded(length: int, limit: int) -> int:
    """The padded length of a text: few lengths mean few compilations, short ones little work.

    Attention is masked by the true length, so that padding does not change the features.
    """
    return next((n for n in PADDED_LENGTHS if length <= n < limit), limit)
