"""Bitwise multi-scale residual quantizer (paper 3.2).

`accumulate` and `next_input` are the two steps that tokenizing, self-correction and generation
share: codes of a scale are added to the running total, and the total is resized to the next
scale's grid to become the transformer's input.

Everything here is float32: signs decide bits. Cost and memory are linear in d; no table of 2^d
exists.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from infinity_jax.scales import Grid
from infinity_jax.tokenizer.resize import area, bilinear

NORM_EPSILON = 1e-12  # of the L2 normalisation, as released


class Quantized(NamedTuple):
    """What the quantizer makes of features.

    Attributes:
      bits: per scale (B, h, w, d) bool.
      normalised: per scale (B, h, w, d), the L2-normalised residuals z whose signs are the bits.
      codes: per scale (B, h, w, d), ±1/√d with straight-through gradients to z.
      total_Bhwd: the sum of upsampled codes, which the decoder reads; straight-through as well.
    """

    bits: tuple[jax.Array, ...]
    normalised: tuple[jax.Array, ...]
    codes: tuple[jax.Array, ...]
    total_Bhwd: jax.Array


def codes_from_bits(bits_Bhwd: jax.Array) -> jax.Array:
    """Bits (bool or 0/1 integers) to codes ±1/√d on the unit sphere, float32."""
    scale = bits_Bhwd.shape[-1] ** -0.5
    return jnp.where(bits_Bhwd.astype(bool), scale, -scale).astype(jnp.float32)


def accumulate(total_Bhwd: jax.Array, codes_Bhwd: jax.Array) -> jax.Array:
    """Adds a scale's codes, upsampled bilinearly, to the running total at the final grid."""
    return total_Bhwd + bilinear(codes_Bhwd, total_Bhwd.shape[1:3])


def next_input(total_Bhwd: jax.Array, grid: Grid) -> jax.Array:
    """The running total resized bilinearly, without antialias, to the next scale's code grid."""
    return bilinear(total_Bhwd, grid)


def residual_direction(features_Bhwd: jax.Array, total_Bhwd: jax.Array, grid: Grid) -> jax.Array:
    """L2-normalised residual at one scale, (B, h, w, d): its signs are that scale's true bits.

    Shrinking is by area (adaptive average pooling); the last scale is not resized.
    """
    residual = area(features_Bhwd - total_Bhwd, grid)
    square = jnp.sum(jnp.square(residual), axis=-1, keepdims=True)
    # The floor stands under the root, where a zero residual keeps a finite gradient.
    return residual / jnp.sqrt(jnp.maximum(square, NORM_EPSILON**2))


def quantize(features_Bhwd: jax.Array, grids: tuple[Grid, ...]) -> Quantized:
    """Codes features on all scales, each taking the residual that earlier ones left.

    Args:
      features_Bhwd: encoder output, float32, at the last grid.
      grids: (h, w) of each scale's codes, coarse to fine.
    """
    features_Bhwd = features_Bhwd.astype(jnp.float32)
    left = jnp.zeros_like(features_Bhwd)  # running total as later residuals see it: no gradient
    total = jnp.zeros_like(features_Bhwd)
    bits, normalised, codes = [], [], []
    for grid in grids:
        z = residual_direction(features_Bhwd, left, grid)
        scale_bits = z > 0
        code = codes_from_bits(scale_bits)
        straight_through = z + jax.lax.stop_gradient(code - z)
        left = accumulate(left, code)
        total = accumulate(total, straight_through)
        bits.append(scale_bits)
        normalised.append(z)
        codes.append(straight_through)
    return Quantized(tuple(bits), tuple(normalised), tuple(codes), total)


def total_from_bits(bits: tuple[jax.Array, ...]) -> jax.Array:
    """Σ up(q_k) from the bits of all scales, at the last one's grid."""
    total = jnp.zeros(bits[-1].shape, jnp.float32)
    for scale_bits in bits:
        total = accumulate(total, codes_from_bits(scale_bits))
    return total
