"""The tokenizer's encoder in a pipeline: source images to features and codes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infinity_jax.config import TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.images import from_uint8
from infinity_jax.inference.executables import Executables, call_jitted
from infinity_jax.scales import Grid
from infinity_jax.sharding import in_mesh, to_host
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import accumulate, codes_from_bits, normalised_residual
from infinity_jax.weights.part_weights import Params
from infinity_jax.weights.placement import place, share_batch


@functools.partial(jax.jit, static_argnames='autoencoder')
def encode_images(autoencoder: Autoencoder, variables: Any, pixels_BYX3: jax.Array) -> jax.Array:
    """Pixels, uint8, to features (B, h, w, d); compiled once per image size."""
    encoded = autoencoder.apply(variables, from_uint8(pixels_BYX3), method=Autoencoder.encode)
    return cast(jax.Array, encoded)


def encoder_params(tokenizer: Params) -> Params:
    """The encoder's part of a tokenizer's tree."""
    return {'encoder': tokenizer['encoder']}


@functools.partial(jax.jit, static_argnames='grids')
def source_codes(
    features_Bhwd: jax.Array, grids: tuple[Grid, ...], scales: int | jax.Array
) -> jax.Array:
    """Accumulated codes (B, h, w, d) of the features' own bits at the first `scales` scales."""
    total = jnp.zeros_like(features_Bhwd)
    for scale, grid in enumerate(grids):
        bits = normalised_residual(features_Bhwd, total, grid) > 0
        total = jnp.where(scale < scales, accumulate(total, codes_from_bits(bits)), total)
    return total


class SourceEncoder:
    """Encodes images one by one; its weights are on the device only while it does.

    So editing needs no more memory than generating: features of an image are small, and a single
    image's feature maps are those of the decoder. On a mesh the weights stay.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        read: Callable[[], Params | None],
        mesh: Mesh | None = None,
        executables: Executables | None = None,
    ):
        """Takes the tokenizer.

        Args:
          config: of the tokenizer.
          read: returns its parameters; called when the first image is encoded.
          mesh: the devices that share the work; None: the default device.
          executables: the store of compiled programs; None: nothing is stored.
        """
        executables = executables or Executables()
        self._run = executables.call if mesh is None else in_mesh(mesh, call_jitted)
        self._autoencoder = Autoencoder(config)
        self._read, self._mesh = read, mesh
        # Images at the same time: one on each part of a mesh that has images of its own.
        self.shares = 1 if mesh is None else mesh.shape['data'] * mesh.shape['fsdp']

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features (h, w, d), on the host, of images, uint8 (Y, X, 3), of one size of the model.

        Raises:
          UserError: the model has no encoder.
        """
        params, features = self._params, []
        if self._mesh is None:
            params = place(params, 'float32', self._autoencoder.config)
        try:
            for start in range(0, len(images), self.shares):
                # Filled up with the last one: one shape, one compilation.
                rows = range(start, start + self.shares)
                pixels = np.stack([images[min(i, len(images) - 1)] for i in rows])
                features += self._encode(params, share_batch(pixels, self._mesh))
        finally:
            if self._mesh is None:
                jax.tree.map(lambda leaf: leaf.delete(), params)
        return features[: len(images)]

    def codes(
        self, features: Sequence[np.ndarray], grids: tuple[Grid, ...], scales: int
    ) -> np.ndarray:
        """`source_codes` of a batch of features (h, w, d), on the host."""
        return np.asarray(source_codes(np.stack(features), grids, scales))

    def _encode(self, params: Params, pixels_BYX3: jax.Array) -> list[np.ndarray]:
        traced = {'variables': {'params': params}, 'pixels_BYX3': pixels_BYX3}
        features = self._run(encode_images, {'autoencoder': self._autoencoder}, traced)
        return list(np.asarray(features) if self._mesh is None else to_host(features, self._mesh))

    @functools.cached_property
    def _params(self) -> Params:
        """The encoder's parameters: numpy arrays, or placed on the mesh."""
        tokenizer = self._read()
        if tokenizer is None or 'encoder' not in tokenizer:
            raise UserError('the tokenizer has no encoder; editing needs a complete model folder')
        encoder = encoder_params(tokenizer)
        if self._mesh is not None:
            return place(encoder, 'float32', self._autoencoder.config, self._mesh)
        return jax.tree.map(np.asarray, encoder)
