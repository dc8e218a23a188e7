"""Noise in the quantizer during training, so that decoders tolerate missing or wrong bits.

As in the released training, scales are dropped and bits of the first scales are flipped at random.
Here the choices are made per image; the released code drops the same scales for the whole batch.
"""

import dataclasses

import jax
import jax.numpy as jnp

from infinity_jax.errors import UserError
from infinity_jax.ranges import Range, check_ranges
from infinity_jax.scales import Grid


@dataclasses.dataclass(frozen=True)
class QuantizerTraining:
    """Scale dropout, bit flips and the residual's gradient; all off by default."""

    scale_drop: float = 0.0  # probability that a scale of an image is dropped; 0.5 in stage 2
    keep_first: bool = False  # the first scale is never dropped
    keep_last: bool = True  # the last scale is never dropped, as published
    flip_rate: float = 0.0  # probability that a bit of the first `flip_scales` scales is flipped
    flip_scales: int = 1  # number of first scales whose bits may flip
    attach_residual: bool = False  # later residuals carry the gradient of earlier codes

    def __post_init__(self):
        for name in ('scale_drop', 'flip_rate'):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UserError(f'config field quantizer.{name} is {value}; wanted 0 up to below 1')
        if self.scale_drop and not (self.keep_first or self.keep_last):
            raise UserError(
                'quantizer.scale_drop could drop every scale of an image; set '
                'quantizer.keep_last (as published) or quantizer.keep_first'
            )
        check_ranges(self, 'quantizer.', {'flip_scales': Range(1, 256)})


def sample_kept(
    key: jax.Array, config: QuantizerTraining, batch: int, scales: int
) -> jax.Array | None:
    """(B, K) bool, the scales that each image keeps; None without scale dropout."""
    if not config.scale_drop:
        return None
    kept_BK = jax.random.bernoulli(key, 1 - config.scale_drop, (batch, scales))
    if config.keep_first:
        kept_BK = kept_BK.at[:, 0].set(True)
    if config.keep_last:
        kept_BK = kept_BK.at[:, -1].set(True)
    return kept_BK


def sample_flips(
    key: jax.Array, config: QuantizerTraining, batch: int, grids: tuple[Grid, ...], bits: int
) -> tuple[jax.Array | None, ...] | None:
    """Per scale (B, h, w, d) bool, or None for a scale without flips; None without flip_rate."""
    if not config.flip_rate:
        return None
    return tuple(
        jax.random.bernoulli(jax.random.fold_in(key, k), config.flip_rate, (batch, *grid, bits))
        if k < config.flip_scales
        else None
        for k, grid in enumerate(grids)
    )


def sample_truncation(key: jax.Array, batch: int, scales: int) -> jax.Array:
    """(B,) int32, how many first scales of each image to decode: 1 to K − 1, or 1 if K is 1."""
    return jax.random.randint(key, (batch,), 1, max(scales, 2), jnp.int32)
