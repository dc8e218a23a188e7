"""Convolutional encoder and decoder around the bitwise quantizer (paper 3.2, as in VQGAN/FLUX)."""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from infinity_jax.config import FALLBACK_GROUPS, TokenizerConfig
from infinity_jax.tokenizer.precision import convolution, on_code_grid
from infinity_jax.tokenizer.upsample import UpsampleConv

NORM_EPSILON = 1e-6
FLAT = 1e-6  # standard deviation, per 1 + |mean|, that float32 cannot tell from rounding
KERNEL_INIT = nn.with_logical_partitioning(
    nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
    (None, None, 'conv_in', 'conv_out'),
)


def conv(features: int, size: int, stride: int = 1, **options: Any) -> nn.Conv:
    """A 3×3 (or 1×1) convolution; stride 2 pads zeros on the right and bottom only."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=((0, 1), (0, 1)) if stride == 2 else 'SAME',
        kernel_init=KERNEL_INIT,
        conv_general_dilated=convolution,
        **options,
    )


class GroupNorm(nn.Module):
    """Group normalisation in float32; returns the dtype of its input.

    No gradient passes through the normalisation of a flat group, one whose standard deviation is
    `FLAT` or less: its pattern is rounding. The ε under the root would give every such norm the
    slope 1/√ε = 1000, which a decoder of seven norms multiplied to 1e18 where the codes of an
    image's first scales cancelled. Scale and bias keep their gradients.


    It sums over the image first and over the channels of a group afterwards. On CPU that is four
    times as fast as one reduction over a five-dimensional view.
    """

    groups: int

    @nn.compact
    def __call__(self, x_Bhwc: jax.Array) -> jax.Array:
        channels = x_Bhwc.shape[-1]
        groups = self.groups if channels % self.groups == 0 else FALLBACK_GROUPS
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))

        def group_mean(y_Bhwc):
            mean_Bg = y_Bhwc.mean((1, 2)).reshape(-1, groups, channels // groups).mean(-1)
            return jnp.repeat(mean_Bg, channels // groups, axis=-1)[:, None, None, :]

        x = x_Bhwc.astype(jnp.float32)
        mean = group_mean(x)
        centred = x - mean
        variance = group_mean(jnp.square(centred))
        inverse = jax.lax.rsqrt(variance + NORM_EPSILON)
        # Both branches have the same value: only the gradient differs.
        flat = jax.lax.stop_gradient(variance <= FLAT**2 * (1 + jnp.square(mean)))
        centred, inverse = (
            jnp.where(flat, jax.lax.stop_gradient(part), part) for part in (centred, inverse)
        )
        y = centred * (inverse * scale[None, None, None]) + bias[None, None, None]
        return y.astype(x_Bhwc.dtype)


class ResidualBlock(nn.Module):
    """GroupNorm, swish and convolution, twice, plus a shortcut (1×1 if widths differ)."""

    features: int
    config: TokenizerConfig
    dtype: Any
    precision: Any

    @nn.compact
    def __call__(self, x_Bhwc: jax.Array) -> jax.Array:
        compute = {'dtype': self.dtype, 'precision': self.precision}
        groups, size = self.config.norm_groups, self.config.kernel_size
        h = nn.swish(GroupNorm(groups, name='norm1')(x_Bhwc))
        h = conv(self.features, size, **compute, name='conv1')(h)
        h = nn.swish(GroupNorm(groups, name='norm2')(h))
        h = conv(self.features, size, **compute, name='conv2')(h)
        if x_Bhwc.shape[-1] != self.features:
            x_Bhwc = conv(self.features, size=1, **compute, name='shortcut')(x_Bhwc)
        return x_Bhwc + h


def residual_block(remat: str) -> type[ResidualBlock]:
    """The class of residual blocks; with 'full' the backward pass recomputes them."""
    return nn.remat(ResidualBlock) if remat == 'full' else ResidualBlock


class Level(nn.Module):
    """The residual blocks of one resolution, then a change of resolution if there is one."""

    features: int
    blocks: int
    config: TokenizerConfig
    dtype: Any
    precision: Any
    remat: str
    change: str = ''  # '', 'downsample' or 'upsample'

    @nn.compact
    def __call__(self, x_Bhwc: jax.Array) -> jax.Array:
        compute = {'dtype': self.dtype, 'precision': self.precision}
        for i in range(self.blocks):
            x_Bhwc = residual_block(self.remat)(
                self.features, self.config, **compute, name=f'block_{i}'
            )(x_Bhwc)
        if self.change == 'downsample':
            x_Bhwc = conv(self.features, 3, stride=2, **compute, name='downsample')(x_Bhwc)
        if self.change == 'upsample':
            x_Bhwc = UpsampleConv(self.features, KERNEL_INIT, **compute, name='upsample')(x_Bhwc)
        return x_Bhwc


class Encoder(nn.Module):
    """Pixels (B, Y, X, 3) in [-1, 1] to features (B, h, w, d)."""

    config: TokenizerConfig
    dtype: Any
    precision: Any
    remat: str

    @nn.compact
    def __call__(self, pixels_BYX3: jax.Array) -> jax.Array:
        config, compute = self.config, {'dtype': self.dtype, 'precision': self.precision}
        saving, block = {**compute, 'remat': self.remat}, residual_block(self.remat)
        u = config.unshuffle
        x = rearrange(pixels_BYX3, 'b (h dy) (w dx) c -> b h w (c dy dx)', dy=u, dx=u)
        widths = [config.base_channels * m for m in config.channel_multipliers]
        x = conv(widths[0], config.kernel_size, **compute, name='conv_in')(x)
        for i, width in enumerate(widths):
            change = 'downsample' if i + 1 < len(widths) else ''
            x = Level(
                width, config.residual_blocks, config, **saving, change=change, name=f'down_{i}'
            )(x)
        for i in (1, 2):
            x = block(widths[-1], config, **compute, name=f'mid_{i}')(x)
        x = nn.swish(GroupNorm(config.norm_groups, name='norm_out')(x))
        return conv(config.bits, config.kernel_size, **compute, name='conv_out')(x).astype(
            jnp.float32
        )


class Decoder(nn.Module):
    """Quantized features (B, h, w, d) to pixels (B, Y, X, 3), not clamped."""

    config: TokenizerConfig
    dtype: Any
    precision: Any
    remat: str

    @nn.compact
    def __call__(self, features_Bhwd: jax.Array) -> jax.Array:
        config, compute = self.config, {'dtype': self.dtype, 'precision': self.precision}
        smallest = {'dtype': self.dtype, 'precision': on_code_grid(self.precision)}
        block = residual_block(self.remat)
        u = config.unshuffle
        widths = [config.base_channels * m for m in config.channel_multipliers]
        x = conv(widths[-1], config.kernel_size, **smallest, name='conv_in')(features_Bhwd)
        for i in (1, 2):
            x = block(widths[-1], config, **smallest, name=f'mid_{i}')(x)
        for i, width in reversed(list(enumerate(widths))):
            saving = {**(smallest if i == len(widths) - 1 else compute), 'remat': self.remat}
            change = 'upsample' if i else ''
            x = Level(width, config.decoder_depth, config, **saving, change=change, name=f'up_{i}')(
                x
            )
        x = nn.swish(GroupNorm(config.norm_groups, name='norm_out')(x))
        self.sow('intermediates', 'last_hidden', x)  # kept only where training asks for it
        x = conv(3 * u * u, config.kernel_size, **compute, name='conv_out')(x)
        return to_pixels(x, u)


def to_pixels(x_Bhwc: jax.Array, unshuffle: int) -> jax.Array:
    """The last convolution's channels to float32 pixels (B, Y, X, 3)."""
    x, u = x_Bhwc.astype(jnp.float32), unshuffle
    return rearrange(x, 'b h w (c dy dx) -> b (h dy) (w dx) c', dy=u, dx=u)


class Autoencoder(nn.Module):
    """The tokenizer's networks; quantization between them is `tokenizer.quantizer`.

    Attributes:
      config: sizes.
      dtype: of the convolutions. Encoding for training and parity wants float32.
      precision: of the convolutions' products, see `precision.convolution`.
      remat: 'full' recomputes residual blocks in the backward pass, 'none' keeps all values.
    """

    config: TokenizerConfig
    dtype: Any = jnp.float32
    precision: Any = jax.lax.Precision.HIGHEST
    remat: str = 'none'

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype, self.precision, self.remat)
        self.decoder = Decoder(self.config, self.dtype, self.precision, self.remat)

    def __call__(self, pixels_BYX3: jax.Array) -> jax.Array:
        """Encodes and decodes without quantizing, for initialising every parameter."""
        return self.decode(self.encode(pixels_BYX3))

    def encode(self, pixels_BYX3: jax.Array) -> jax.Array:
        """Pixels in [-1, 1], edges divisible by the stride, to float32 features (B, h, w, d)."""
        return self.encoder(pixels_BYX3)

    def decode(self, features_Bhwd: jax.Array) -> jax.Array:
        """Σ up(q_k) to pixels, float32, not clamped: clamp to [-1, 1] outside training."""
        return self.decoder(features_Bhwd)

    def last_layer(self, last_params: Any, hidden_Bhwc: jax.Array) -> jax.Array:
        """The decoder's last convolution, applied to `last_hidden` that `Decoder` sows.

        Uses `last_params` and no variables of the module.
        """
        u = self.config.unshuffle
        size, compute = self.config.kernel_size, {'dtype': self.dtype, 'precision': self.precision}
        layer = conv(3 * u * u, size, **compute, parent=None)
        return to_pixels(cast(jax.Array, layer.apply({'params': last_params}, hidden_Bhwc)), u)


@functools.cache
def tokenizer_shapes(config: TokenizerConfig, boxed: bool = False) -> dict[str, Any]:
    """The tokenizer's parameter tree as `ShapeDtypeStruct`s; boxed ones have logical axes."""
    pixels = jax.ShapeDtypeStruct((1, config.stride, config.stride, 3), jnp.float32)
    shapes = jax.eval_shape(Autoencoder(config).init, jax.random.key(0), pixels)['params']
    return shapes if boxed else nn.unbox(shapes)
