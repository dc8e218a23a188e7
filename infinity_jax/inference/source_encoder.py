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
from infinity_jax.scales import Grid
from infinity_jax.sharding import in_mesh, to_host
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import accumulate, codes_from_bits, normalised_residual
from infinity_jax.weights.part_weights import Params
from infinity_jax.weights.placement import place, share_batch


@functools.partial(jax.jit, static_argnames='autoencoder')
def encode(autoencoder: Autoencoder, variables: Any, pixels_BYX3: jax.Array) -> jax.Array:
    """Pixels, uint8, to features (B, h, w, d); compiled once per image size."""
    encoded = autoencoder.apply(variables, from_uint8(pixels_BYX3), method=Autoencoder.encode)
    return cast(jax.Array, encoded)


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
    image's feature maps are those of the decoder.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        read: Callable[[], Params] | None,
        mesh: Mesh | None = None,
    ):
        """Takes the tokenizer.

        Args:
          config: of the tokenizer.
          read: returns the encoder's parameters under 'encoder'; called when the first image is
            encoded. None: there are none.
          mesh: the devices that share the work; None: the default device.
        """
        self._autoencoder = Autoencoder(config)
        self._read, self._mesh = read, mesh
        self._held: Params | None = None

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features (h, w, d), on the host, of images, uint8 (Y, X, 3), of one size of the model."""
        shares = 1  # images at once: one on each part of a mesh that has images of its own
        if self._mesh is not None:
            shares = self._mesh.shape['data'] * self._mesh.shape['fsdp']
        params = place(self._on_host(), 'float32', self._autoencoder.config, self._mesh)
        features: list[np.ndarray] = []
        try:
            for start in range(0, len(images), shares):
                # Filled up with the last one: one shape, one compilation.
                rows = [images[min(i, len(images) - 1)] for i in range(start, start + shares)]
                features += self._encode(params, np.stack(rows))
        finally:
            jax.tree.map(lambda leaf: leaf.delete(), params)
        return features[: len(images)]

    def _on_host(self) -> Params:
        if self._held is None:
            if self._read is None:
                raise UserError('this model has no encoder; editing needs a complete tokenizer')
            self._held = jax.tree.map(np.asarray, {'encoder': self._read()['encoder']})
        return self._held

    def _encode(self, params: Params, pixels_BYX3: np.ndarray) -> list[np.ndarray]:
        rows = share_batch(pixels_BYX3, self._mesh)
        if self._mesh is None:
            return list(np.asarray(encode(self._autoencoder, {'params': params}, rows)))
        run = in_mesh(self._mesh, encode)
        return list(to_host(run(self._autoencoder, {'params': params}, rows), self._mesh))
