"""Bitwise self-correction: inputs with flipped bits, targets that correct them (paper 3.4).

Bits of coarse scales are flipped at random, the residual of every later scale is taken against the
corrupted accumulation, and so the true bits of later scales correct earlier mistakes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from infinity_jax.scales import Grid, ScaleSchedule
from infinity_jax.tokenizer.quantizer import (
    accumulate,
    codes_from_bits,
    flatten_tokens,
    next_input,
    normalised_residual,
)

STRENGTH_STEP = 0.01  # strengths are sampled from {0, 0.01, …, maximum}


def correct(
    features_Bhwd: jax.Array,
    schedule: ScaleSchedule,
    flip: Callable[[int, jax.Array], jax.Array],
    *,
    patchify: bool = False,
    requantize: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Quantizes features scale by scale, on top of the bits that `flip` gave for earlier scales.

    Args:
      features_Bhwd: encoder output at the last code grid, float32.
      schedule: the token grids.
      flip: (scale, true bits (B, h, w, d)) to the bits that are accumulated.
      patchify: whether 2×2 codes fold into one token.
      requantize: False leaves the targets as they are without flips: the paper's comparison, in
        which later scales learn to ignore mistakes instead of correcting them.

    Returns:
      inputs_BLd, float32: the transformer's inputs of all scales but the first.
      targets_BLd, bool: the true bits of all scales.
    """
    features_Bhwd = features_Bhwd.astype(jnp.float32)
    grids = schedule.code_grids(patchify)
    total = quantized = jnp.zeros_like(features_Bhwd)
    inputs, targets = [], []
    for scale, grid in enumerate(grids):
        if scale:
            inputs.append(flatten_tokens(next_input(total, grid), patchify))
        bits = normalised_residual(features_Bhwd, quantized, grid) > 0
        targets.append(flatten_tokens(bits, patchify))
        total = accumulate(total, codes_from_bits(flip(scale, bits)))
        quantized = total if requantize else accumulate(quantized, codes_from_bits(bits))
    return jnp.concatenate(inputs, axis=1), jnp.concatenate(targets, axis=1)


def sample_flips(
    key: jax.Array,
    batch: int,
    bits: int,
    schedule: ScaleSchedule,
    *,
    max_strength: float = 0.3,
    group: int = 0,
    patchify: bool = False,
) -> tuple[jax.Array, ...]:
    """Samples the bits to flip, bool (B, h, w, d), of all scales but the last, which is no input.

    At each scale a strength is sampled uniformly from {0, 0.01, …, `max_strength`}, and every bit
    flips with that probability.

    Args:
      bits: d of the tokenizer.
      group: successive images that share a strength; 0: the whole batch. The released code samples
        a strength per process and micro-batch, of 4 images in its script.
    """
    steps = round(max_strength / STRENGTH_STEP)

    def of_scale(scale: int, grid: Grid) -> jax.Array:
        strength_key, bit_key = jax.random.split(jax.random.fold_in(key, scale))
        shape = (-(-batch // group) if group else 1, 1, 1, 1)
        strength = jax.random.randint(strength_key, shape, 0, steps + 1) * STRENGTH_STEP
        if group > 1:
            strength = jnp.repeat(strength, group, axis=0)[:batch]
        return jax.random.uniform(bit_key, (batch, *grid, bits)) < strength

    grids = schedule.code_grids(patchify)[:-1]
    return tuple(of_scale(scale, grid) for scale, grid in enumerate(grids))


def corrupt(
    features_Bhwd: jax.Array,
    schedule: ScaleSchedule,
    flips: tuple[jax.Array, ...],
    *,
    patchify: bool = False,
    requantize: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Self-correction inputs and targets: `correct` with the bits of `sample_flips` flipped."""

    def flip(scale: int, bits_Bhwd: jax.Array) -> jax.Array:
        return bits_Bhwd ^ flips[scale] if scale < len(flips) else bits_Bhwd

    return correct(features_Bhwd, schedule, flip, patchify=patchify, requantize=requantize)
