"""Decoding for drawing: the plain decoder while its maps are small, else in less memory."""

from typing import Any

import jax

from infinity_jax.config import TokenizerConfig
from infinity_jax.sharding import target_platform
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.row_blocks import RowDecoder

WHOLE_BYTES = 2**28  # of the widest float32 feature map that is taken in one piece
BLOCK_BYTES = 2**26  # of such a map's rows that are taken at once otherwise
# The same on TPU, where maps of 128² pixels are then several blocks too: a loop of one turn would
# be dissolved, and the compiler would find its convolutions, though equal, in unequal places.
TPU_BLOCK_BYTES = 2**24
PLAIN_MAPS, ROW_MAPS = 4, 2  # widest maps that are alive at once
BLOCKS = 4  # the same for blocks of rows


def widest_map(config: TokenizerConfig, height: int, width: int) -> int:
    """Numbers in the decoder's largest feature map: a level's channels after its upsampling."""
    sizes = []
    for level, multiplier in enumerate(config.channel_multipliers):
        shrink = config.unshuffle * 2 ** max(level - 1, 0)
        pixels = (height // shrink) * (width // shrink)
        sizes.append(pixels * multiplier * config.base_channels)
    return max(sizes)


def decoding_bytes(
    config: TokenizerConfig, batch: int, height: int, width: int, on_mesh: bool = False
) -> int:
    """About what `decode` needs beside weights and result, in float32."""
    bytes_each = widest_map(config, height, width) * 4
    if on_mesh or batch * bytes_each <= WHOLE_BYTES:
        return batch * PLAIN_MAPS * bytes_each
    if bytes_each <= WHOLE_BYTES:
        return PLAIN_MAPS * bytes_each
    return ROW_MAPS * bytes_each + BLOCKS * BLOCK_BYTES


def decode(autoencoder: Autoencoder, variables: Any, features_Bhwd: jax.Array) -> jax.Array:
    """`Autoencoder.decode`, in bounded memory where the pictures are large.

    A batch whose maps are large is decoded picture by picture, and a large picture by blocks of
    rows. Several devices share the batch out already; there it is decoded as it is.
    """
    config = autoencoder.config
    batch, *grid, _ = features_Bhwd.shape
    height, width = (size * config.stride for size in grid)
    bytes_each = widest_map(config, height, width) * 4
    shared = jax.sharding.get_abstract_mesh().size > 1
    if shared or batch * bytes_each <= WHOLE_BYTES:
        return autoencoder.apply(variables, features_Bhwd, method=Autoencoder.decode)
    compute = {'dtype': autoencoder.dtype, 'precision': autoencoder.precision}
    block_bytes = TPU_BLOCK_BYTES if target_platform() == 'tpu' else BLOCK_BYTES
    in_rows = RowDecoder(config, **compute, max_bytes=block_bytes)

    def one(features_hwd: jax.Array) -> jax.Array:
        features = features_hwd[None]
        if bytes_each > WHOLE_BYTES:
            return in_rows(variables['params']['decoder'], features)[0]
        return autoencoder.apply(variables, features, method=Autoencoder.decode)[0]

    return jax.lax.map(one, features_Bhwd)
