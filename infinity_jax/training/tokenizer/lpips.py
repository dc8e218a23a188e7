"""Perceptual distance LPIPS, version 0.1, on VGG-16 features (arXiv 1801.03924).

The weights are frozen and come from files that the user names, see `lpips_files`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import conv_general_dilated, reduce_window

# Widths of VGG-16's convolutions by block; 2×2 max pools separate the blocks.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Mean and standard deviation of ImageNet's colours, for pixels in [-1, 1] instead of [0, 1].
SHIFT = (-0.030, -0.088, -0.188)
SPREAD = (0.458, 0.448, 0.450)
NORM_EPSILON = 1e-10  # added to the length of a feature vector, as published
NO_LENGTH = 1e-6  # a feature vector this short is a rounding error
HIGHEST = jax.lax.Precision.HIGHEST
MIN_EDGE = 16  # pixels; four max pools reduce them to one position


def convolution_shapes() -> dict[str, tuple[int, int, int, int]]:
    """'BLOCK_INDEX' -> kernel shape (3, 3, in, out), in the order of the network."""
    shapes, channels = {}, 3
    for block, widths in enumerate(BLOCKS):
        for i, width in enumerate(widths):
            shapes[f'{block}_{i}'] = (3, 3, channels, width)
            channels = width
    return shapes


def vgg_features(
    params: Any, pixels_BYX3: jax.Array, precision: jax.lax.Precision = HIGHEST
) -> list[jax.Array]:
    """Activations after the last ReLU of each block: relu1_2, 2_2, 3_3, 4_3 and 5_3, float32.

    Args:
      params: {'vgg': {'BLOCK_INDEX': {'kernel', 'bias'}}, …}.
      pixels_BYX3: in [-1, 1], edges of 16 pixels or more.
      precision: of the convolutions' products.
    """
    if min(pixels_BYX3.shape[1:3]) < MIN_EDGE:
        raise ValueError(f'images of {pixels_BYX3.shape[1:3]}; wanted edges of {MIN_EDGE} pixels')
    shift, spread = (jnp.array(x, jnp.float32)[None, None, None] for x in (SHIFT, SPREAD))
    x = (pixels_BYX3 - shift) / spread
    taps = []
    for block, widths in enumerate(BLOCKS):
        if block:
            x = reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')
        for i in range(len(widths)):
            layer = params['vgg'][f'{block}_{i}']
            x = conv_general_dilated(
                x,
                layer['kernel'],
                (1, 1),
                'SAME',
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                precision=precision,
            )
            x = jax.nn.relu(x + layer['bias'][None, None, None])
        taps.append(x)
    return taps


def _unit(x_Bhwc: jax.Array) -> jax.Array:
    """Feature vectors divided by their lengths, (B, h, w, c).

    A vector of length `NO_LENGTH` or less is a rounding error, and gets the gradient zero instead
    of up to 1e10, the inverse of the published ε. A vector of zeros stays as it is.
    """
    square = jnp.sum(jnp.square(x_Bhwc), axis=-1, keepdims=True)
    long = square > NO_LENGTH**2
    # The root has a gradient only where it is finite; the values are those of the plain formula.
    root = jnp.sqrt(jnp.where(long, square, 1.0))
    length = jnp.where(long, root, jax.lax.stop_gradient(jnp.sqrt(square)))
    return jnp.where(long, x_Bhwc, jax.lax.stop_gradient(x_Bhwc)) / (length + NORM_EPSILON)


def lpips(
    params: Any,
    pixels_BYX3: jax.Array,
    target_BYX3: jax.Array,
    precision: jax.lax.Precision = HIGHEST,
) -> jax.Array:
    """(B,) distances of pairs of images in [-1, 1]; 0 for equal ones.

    Args:
      params: {'vgg': …, 'heads': ((64,), (128,), (256,), (512,), (512,))}, as
        `lpips_files.load_lpips` reads them.
      precision: of the convolutions' products; evaluation needs the highest.
    """
    distance_B = jnp.zeros(pixels_BYX3.shape[0])
    features = (vgg_features(params, x, precision) for x in (pixels_BYX3, target_BYX3))
    taps = zip(*features, strict=True)
    for head, (tap, target_tap) in zip(params['heads'], taps, strict=True):
        square = jnp.square(_unit(tap) - _unit(target_tap))
        distance_B += jnp.mean(jnp.sum(square * head[None, None, None], axis=-1), axis=(1, 2))
    return distance_B
