"""The decoder for generation: the plain one for small images, else in blocks of rows.

The plain decoder has four or more feature maps of full resolution alive at once, 1.1 GB each at
1024². `RowDecoder` has two, or three on a GPU: the result of a residual block replaces its input,
and the values between norm and convolution exist for some rows only. Nothing is approximated. A
block of rows includes the neighbouring rows that a convolution reads, and norms take their
statistics over the whole image. Its maps have a spare row above and one below, so that all blocks
are cut alike; what they hold is never used.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from infinity_jax.config import FALLBACK_GROUPS, TokenizerConfig
from infinity_jax.sharding import activation_spec, target_peak, target_platform
from infinity_jax.tokenizer.autoencoder import NORM_EPSILON, Autoencoder, to_pixels
from infinity_jax.tokenizer.precision import convolution, on_code_grid

WHOLE_BYTES = 2**28  # widest float32 feature map that is not split into blocks
WHOLE_SHARE = 32  # on a known GPU: its memory by this number, if that is more
BLOCK_BYTES = 2**26  # rows of a wider map that are processed at once
# The same on TPU. Maps of 128² pixels are then several blocks too: the compiler would unroll a loop
# of one block and compile its convolutions again.
TPU_BLOCK_BYTES = 2**24
PLAIN_MAPS, ROW_MAPS = 4, 2  # widest maps that the plain and the row decoder have alive at once
GPU_ROW_MAPS = 3  # compiled for an RTX 4060, which keeps a copy of one: 3.49 GB at 1024²
SPARE = 1  # rows above and below a map of the row decoder: what a 3×3 convolution reaches
BLOCKS = 4  # blocks of rows that the row decoder has alive at once
Params = Mapping[str, Any]


def decode(autoencoder: Autoencoder, variables: Any, features_Bhwd: jax.Array) -> jax.Array:
    """`Autoencoder.decode` in bounded memory.

    A batch whose feature maps are large is decoded image by image, and a large image in blocks of
    rows. Of several devices each decodes its own images with the whole weights: left to itself, the
    compiler splits the channels of split kernels, and every device gets the maps of all images.

    Args:
      autoencoder: the module.
      variables: its variables.
      features_Bhwd: quantized features.

    Returns:
      Pixels (B, Y, X, 3), not clamped.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1:
        rows = activation_spec(features_Bhwd.shape, ('batch', None, None, None))
        on_each = jax.shard_map(
            functools.partial(_decode, autoencoder),
            in_specs=(PartitionSpec(), rows),
            out_specs=rows,
            check_vma=False,
        )
        return on_each(variables, features_Bhwd)
    return _decode(autoencoder, variables, features_Bhwd)


def _decode(autoencoder: Autoencoder, variables: Any, features_Bhwd: jax.Array) -> jax.Array:
    """`decode` on one device."""
    config = autoencoder.config
    batch, *grid, _ = features_Bhwd.shape
    height, width = (size * config.stride for size in grid)
    bytes_each = widest_map(config, height, width) * 4
    whole = whole_bytes()
    if batch * bytes_each <= whole:
        pixels = autoencoder.apply(variables, features_Bhwd, method=Autoencoder.decode)
        return cast(jax.Array, pixels)
    compute = {'dtype': autoencoder.dtype, 'precision': autoencoder.precision}
    block_bytes = TPU_BLOCK_BYTES if target_platform() == 'tpu' else BLOCK_BYTES
    row_decoder = RowDecoder(config, **compute, max_bytes=block_bytes)

    def one(features_hwd: jax.Array) -> jax.Array:
        features = features_hwd[None]
        if bytes_each > whole:
            return row_decoder(variables['params']['decoder'], features)[0]
        return autoencoder.apply(variables, features, method=Autoencoder.decode)[0]

    return jax.lax.map(one, features_Bhwd)


def widest_map(config: TokenizerConfig, height: int, width: int) -> int:
    """Elements of the decoder's largest feature map, which has a level's channels upsampled."""
    sizes = []
    for level, multiplier in enumerate(config.channel_multipliers):
        shrink = config.unshuffle * 2 ** max(level - 1, 0)
        pixels = (height // shrink) * (width // shrink)
        sizes.append(pixels * multiplier * config.base_channels)
    return max(sizes)


def whole_bytes() -> int:
    """Bytes of the widest feature map that is not split into blocks, on the present device.

    On a GPU with much memory that is larger than elsewhere: blocks of rows are copied out of their
    maps and back.
    """
    peak = target_peak() if target_platform() == 'gpu' else None
    return max(WHOLE_BYTES, peak.hbm_bytes // WHOLE_SHARE) if peak else WHOLE_BYTES


def decoding_bytes(config: TokenizerConfig, batch: int, height: int, width: int) -> int:
    """Estimates the bytes that `decode` needs for the images of one device, in float32.

    Weights and result are not counted.
    """
    bytes_each, whole = widest_map(config, height, width) * 4, whole_bytes()
    if batch * bytes_each <= whole:
        return batch * PLAIN_MAPS * bytes_each
    if bytes_each <= whole:
        return PLAIN_MAPS * bytes_each
    maps = GPU_ROW_MAPS if target_platform() == 'gpu' else ROW_MAPS
    return maps * bytes_each + BLOCKS * BLOCK_BYTES


@dataclasses.dataclass(frozen=True)
class RowDecoder:
    """`autoencoder.Decoder` with the same parameters, computed block by block.

    Attributes:
      config: sizes.
      dtype, precision: of the convolutions.
      max_bytes: size of a block of a float32 feature map.
    """

    config: TokenizerConfig
    dtype: Any
    precision: Any
    max_bytes: int

    def __call__(self, params: Params, features_Bhwd: jax.Array) -> jax.Array:
        """Quantized features (B, h, w, d) to pixels (B, Y, X, 3), not clamped."""
        levels = len(self.config.channel_multipliers)
        x = jnp.pad(features_Bhwd, ((0, 0), (SPARE, SPARE), (0, 0), (0, 0)))
        smallest = dataclasses.replace(self, precision=on_code_grid(self.precision))
        x = smallest._convolve(params['conv_in'], x)
        for i in (1, 2):
            x = smallest._residual(params[f'mid_{i}'], x)
        for i in reversed(range(levels)):
            level = params[f'up_{i}']
            decoder = smallest if i == levels - 1 else self
            for j in range(self.config.decoder_depth):
                x = decoder._residual(level[f'block_{j}'], x)
            if i:
                x = decoder._convolve(level['upsample'], x, upsample=2)
        x = self._convolve(params['conv_out'], x, self._activation(params['norm_out'], x))
        return to_pixels(_within(x), self.config.unshuffle)

    def _residual(self, params: Params, x_Bhwc: jax.Array) -> jax.Array:
        h = self._convolve(params['conv1'], x_Bhwc, self._activation(params['norm1'], x_Bhwc))
        activation = self._activation(params['norm2'], h)
        return self._convolve(params['conv2'], h, activation, residual=x_Bhwc, shortcut=params)

    def _activation(self, norm: Params, x_Bhwc: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """GroupNorm and swish of some rows of `x`, with the statistics of all rows."""
        batch, *_, channels = x_Bhwc.shape
        groups = self.config.norm_groups
        groups = groups if channels % groups == 0 else FALLBACK_GROUPS

        def group_mean(y_Bhwc):
            return y_Bhwc.mean((1, 2)).reshape(batch, groups, -1).mean(-1)

        def per_channel(y_Bg):
            return jnp.repeat(y_Bg, channels // groups, axis=-1)[:, None, None, :]

        x = _within(x_Bhwc).astype(jnp.float32)
        # One pass over the map: sums of what is left after a mean that one row gives.
        near_mean_Bg = group_mean(x[:, :1])
        rest = x - per_channel(near_mean_Bg)
        rest_mean_Bg = group_mean(rest)
        variance_Bg = group_mean(jnp.square(rest)) - jnp.square(rest_mean_Bg)
        mean = per_channel(near_mean_Bg + rest_mean_Bg)
        inverse = per_channel(jax.lax.rsqrt(jnp.maximum(variance_Bg, 0) + NORM_EPSILON))
        factor = inverse * norm['scale'][None, None, None]

        def activate(rows_Bhwc):
            y = (rows_Bhwc.astype(jnp.float32) - mean) * factor + norm['bias'][None, None, None]
            return nn.swish(y.astype(rows_Bhwc.dtype))

        return activate

    def _convolve(
        self,
        conv: Params,
        x_Bhwc: jax.Array,
        activation: Callable[[jax.Array], jax.Array] = lambda rows: rows,
        *,
        upsample: int = 1,
        residual: jax.Array | None = None,
        shortcut: Params | None = None,
    ) -> jax.Array:
        """Activates `x`, upsamples it by repetition, convolves it and adds the residual.

        Args:
          conv: kernel and bias.
          x_Bhwc: the input.
          activation: of some rows.
          upsample: factor of both edges.
          residual: input of a residual block, added to the result. Without a 1×1 convolution in
            the shortcut, the result replaces it in memory.
          shortcut: parameters of that residual block.
        """
        batch, height, width, channels = _within(x_Bhwc).shape
        features = conv['kernel'].shape[-1]
        widest = max(channels, features) * upsample**2
        count = block_rows(height, batch * width * widest * 4, self.max_bytes)
        reach = conv['kernel'].shape[0] // 2  # rows that it reads on either side of a block
        widening = None if shortcut is None else shortcut.get('shortcut')
        in_place = residual is not None and widening is None

        def compute(i: jax.Array, out: jax.Array) -> jax.Array:
            start = i * count + SPARE - reach
            rows = jax.lax.dynamic_slice_in_dim(x_Bhwc, start, count + 2 * reach, axis=1)
            row = start + jnp.arange(rows.shape[1])[None, :, None, None]
            # The padding of the convolution is zero, which activated zeros are not.
            within = (row >= SPARE) & (row < SPARE + height)
            rows = jnp.where(within, activation(rows), 0)
            if upsample > 1:
                rows = jnp.repeat(jnp.repeat(rows, upsample, axis=1), upsample, axis=2)
                spare = reach * (upsample - 1)
                rows = rows[:, spare : rows.shape[1] - spare]
            y = self._product(conv, rows)
            at = SPARE + i * count * upsample
            if residual is not None:
                source = out if in_place else residual
                same = jax.lax.dynamic_slice_in_dim(source, at, count, axis=1)
                y = y + (same if widening is None else self._product(widening, same))
            return jax.lax.dynamic_update_slice_in_dim(out, y, at, axis=1)

        if in_place:
            out = residual
        else:
            shape = (batch, height * upsample + 2 * SPARE, width * upsample, features)
            out = jax.lax.empty(shape, self.dtype)
        return jax.lax.fori_loop(0, height // count, compute, out)

    def _product(self, conv: Params, rows_Bhwc: jax.Array) -> jax.Array:
        """A convolution of rows that include its padding."""
        x, kernel = rows_Bhwc.astype(self.dtype), conv['kernel'].astype(self.dtype)
        bias = conv['bias'].astype(self.dtype)[None, None, None]
        if target_platform() != 'tpu':
            return convolve(x, kernel, self.precision) + bias
        # Without fused operations, convolutions of one shape are equal and compile once.
        x = jax.lax.optimization_barrier(x)
        return jax.lax.optimization_barrier(convolve_rows(x, kernel, self.precision) + bias)


def _within(x_Bhwc: jax.Array) -> jax.Array:
    """A map of the row decoder without its spare rows."""
    return x_Bhwc[:, SPARE : x_Bhwc.shape[1] - SPARE]


def block_rows(height: int, row_bytes: int, max_bytes: int) -> int:
    """Rows per block: the largest divisor of the height that fits in `max_bytes`."""
    fitting = [n for n in range(1, height + 1) if height % n == 0 and n * row_bytes <= max_bytes]
    return max(fitting, default=1)


def convolve(x_Bhwc: jax.Array, kernel: jax.Array, precision: Any = None) -> jax.Array:
    """A convolution of odd width, padded with zeros along the width and not along the rows."""
    reach = kernel.shape[1] // 2
    return convolution(
        x_Bhwc,
        kernel,
        (1, 1),
        ((0, 0), (reach, reach)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=precision,
    )


def convolve_rows(x_Bhwc: jax.Array, kernel: jax.Array, precision: Any = None) -> jax.Array:
    """Equals `convolve`, as one-dimensional convolutions with the rows as a batch.

    Those of the rows above, the rows themselves and the rows below are added. XLA:TPU is made for
    large batches: for a single image it would split the width and copy the parts. In its estimate
    that took half as long again as the products, and compilation took twice as long.
    """
    batch, rows, width, channels = x_Bhwc.shape
    taps, across, _, features = kernel.shape
    count, reach = rows - taps + 1, across // 2

    products = [
        convolution(
            x_Bhwc[:, row : row + count].reshape(batch * count, width, channels),
            tap,
            (1,),
            ((reach, reach),),
            dimension_numbers=('NWC', 'WIO', 'NWC'),
            precision=precision,
        )
        for row, tap in enumerate(kernel)
    ]
    return functools.reduce(operator.add, products).reshape(batch, count, width, features)
