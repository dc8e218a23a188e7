"""Bitwise multi-scale residual quantizer (paper 3.2), and codes as the transformer's tokens.

`accumulate` and `next_input` are the two steps that tokenizing, self-correction and generation
share: codes of a scale are added to the running total, and the total is resized to the next
scale's grid to become the transformer's input. `flatten_tokens` arranges codes as tokens; with
spatial patchify, as in the 8B model, 2×2 codes of d channels become one token of 4d channels.

Everything is float32, because signs decide bits. Cost and memory are linear in d; no table of 2^d
entries exists.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from infinity_jax.scales import Grid
from infinity_jax.tokenizer.resize import area, bilinear

NORM_EPSILON = 1e-12  # of the L2 normalisation, as released
# Codes have length 1 and about a dozen of them are added up. Float32 rounds that sum by up to
# 12 · 6e-8, so a shorter residual is rounding and not signal.
NO_RESIDUAL = 1e-6


class Quantized(NamedTuple):
    """Quantized features.

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
    _, h, w, _ = total_Bhwd.shape
    return total_Bhwd + bilinear(codes_Bhwd, (h, w))


def next_input(total_Bhwd: jax.Array, grid: Grid) -> jax.Array:
    """The running total resized bilinearly, without antialias, to the next scale's code grid."""
    return bilinear(total_Bhwd, grid)


def residual_at(features_Bhwd: jax.Array, total_Bhwd: jax.Array, grid: Grid) -> jax.Array:
    """The residual of earlier scales at one scale's grid, (B, h, w, d).

    It is shrunk by area (adaptive average pooling); at the last scale it is not resized.
    """
    return area(features_Bhwd - total_Bhwd, grid)


def normalised_residual(features_Bhwd: jax.Array, total_Bhwd: jax.Array, grid: Grid) -> jax.Array:
    """L2-normalised residual at one scale, (B, h, w, d): its signs are that scale's true bits.

    A residual r of length `NO_RESIDUAL` or less gets the gradient zero. The derivative of r/|r| is
    (I − zzᵀ)/|r|: at r = 0 it does not exist, and near 0 it is a huge multiple of a direction that
    rounding decides. The floor alone would give 1e12 there, to the power of the number of such
    scales where residuals are attached. Zero is a convention, as for |x| at 0. The features still
    learn: the next scale sees the code of such a scale as a residual of length 1. Everywhere else
    the gradient is the exact one, of at most 1/|r| < 1e6.
    """
    residual = residual_at(features_Bhwd, total_Bhwd, grid)
    length = jnp.sqrt(jnp.sum(jnp.square(jax.lax.stop_gradient(residual)), -1, keepdims=True))
    # Both branches have the same value: only the gradient differs.
    residual = jnp.where(length > NO_RESIDUAL, residual, jax.lax.stop_gradient(residual))
    square = jnp.sum(jnp.square(residual), axis=-1, keepdims=True)
    # The floor is inside the root, so that a residual of zero has a finite value.
    return residual / jnp.sqrt(jnp.maximum(square, NORM_EPSILON**2))


def quantize(
    features_Bhwd: jax.Array,
    grids: tuple[Grid, ...],
    *,
    kept_BK: jax.Array | None = None,
    flips: tuple[jax.Array | None, ...] | None = None,
    attached: bool = False,
) -> Quantized:
    """Quantizes features scale by scale; each scale codes the residual of the earlier ones.

    The keyword arguments are for training a tokenizer; `training.tokenizer.noise` samples them.

    Args:
      features_Bhwd: encoder output, float32, at the last grid.
      grids: (h, w) of each scale's codes, coarse to fine.
      kept_BK: bool; a scale that is False for an image adds nothing, and the next scale codes its
        residual. Its bits and z are still returned. None: all are kept.
      flips: per scale (B, h, w, d) bool; True changes the sign of a code and of its gradient
        before anything reads it. None, or None for a scale: no flips. `bits` are not flipped.
      attached: whether the residual of a scale passes gradients to earlier codes; as released it
        does not.
    """
    features_Bhwd = features_Bhwd.astype(jnp.float32)
    subtracted = jnp.zeros_like(features_Bhwd)  # running total that residuals are taken from
    total = jnp.zeros_like(features_Bhwd)
    bits, normalised, codes = [], [], []
    for k, grid in enumerate(grids):
        z = normalised_residual(features_Bhwd, subtracted, grid)
        scale_bits = z > 0
        code = codes_from_bits(scale_bits)
        straight_through = z + jax.lax.stop_gradient(code - z)
        bits.append(scale_bits)
        normalised.append(z)
        flipped = None if flips is None else flips[k]
        if flipped is not None:
            sign = jnp.where(flipped, -1.0, 1.0)
            code, straight_through = code * sign, straight_through * sign
        if kept_BK is not None:
            kept = kept_BK[:, k, None, None, None].astype(jnp.float32)
            code, straight_through = code * kept, straight_through * kept
        subtracted = accumulate(subtracted, straight_through if attached else code)
        total = accumulate(total, straight_through)
        codes.append(straight_through)
    return Quantized(tuple(bits), tuple(normalised), tuple(codes), total)


def truncated_total(codes: tuple[jax.Array, ...], scales_B: jax.Array) -> jax.Array:
    """The sum of each image's first `scales_B` scales of upsampled codes, (B, h, w, d)."""
    total = jnp.zeros_like(codes[-1])
    for k, code in enumerate(codes):
        total = accumulate(total, code * (k < scales_B).astype(jnp.float32)[:, None, None, None])
    return total


def total_from_bits(bits: tuple[jax.Array, ...]) -> jax.Array:
    """Σ up(q_k) from the bits of all scales, at the last one's grid."""
    total = jnp.zeros(bits[-1].shape, jnp.float32)
    for scale_bits in bits:
        total = accumulate(total, codes_from_bits(scale_bits))
    return total


def space_to_depth(x_Bhwd: jax.Array) -> jax.Array:
    """(B, 2h, 2w, d) to (B, h, w, 4d); the channel order is c·4 + 2·dy + dx."""
    return rearrange(x_Bhwd, 'b (h dy) (w dx) c -> b h w (c dy dx)', dy=2, dx=2)


def depth_to_space(x_Bhwd: jax.Array) -> jax.Array:
    """The inverse of `space_to_depth`: (B, h, w, 4d) to (B, 2h, 2w, d)."""
    return rearrange(x_Bhwd, 'b h w (c dy dx) -> b (h dy) (w dx) c', dy=2, dx=2)


def flatten_tokens(x_Bhwd: jax.Array, patchify: bool) -> jax.Array:
    """A scale's codes or inputs as tokens, (B, h·w, d), row by row; 4d with spatial patchify."""
    if patchify:
        x_Bhwd = space_to_depth(x_Bhwd)
    return x_Bhwd.reshape(x_Bhwd.shape[0], -1, x_Bhwd.shape[-1])
