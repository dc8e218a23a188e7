"""Bits of a source image that generation takes instead of sampled ones: editing without training.

At every scale the source's bits are those of its residual of what has been accumulated, sampled
bits included, as in self-correction: they repair what sampled neighbours and coarser scales changed
where the source is kept.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.tokenizer.quantizer import normalised_residual


class GivenBits(NamedTuple):
    """The sources of a batch of images, and which of their bits are kept; all arrays are traced.

    Attributes:
      features_Bhwd: encoder output at the last code grid, float32.
      kept: per scale (B, h, w) bool, on the code grids; True: the source's bits are taken.
      tolerance_B: for editing by words: a bit that is not in `kept` is the source's as well where
        it is at most this many nats less likely under the prompt than under the source's prompt.
        −inf: nowhere.
    """

    features_Bhwd: jax.Array | np.ndarray
    kept: tuple[jax.Array | np.ndarray, ...]
    tolerance_B: jax.Array | np.ndarray


class Margins(NamedTuple):
    """Logit of 1 minus logit of 0 of each bit, (B, h, w, d), before guidance and temperature.

    Attributes:
      prompt: under the prompt.
      other: under the text that guidance leads away from.
    """

    prompt: jax.Array
    other: jax.Array


def with_given_bits(
    given: GivenBits,
    total_Bhwd: jax.Array,
    sampled_Bhwd: jax.Array,
    margins: Margins | None,
    scale: int,
) -> jax.Array:
    """The sampled bits (B, h, w, d) of one scale with the source's where they are kept.

    Args:
      given: sources and masks.
      total_Bhwd: codes accumulated at earlier scales.
      sampled_Bhwd: the sampled bits, bool.
      margins: None where this scale has no logits of two texts: then the masks alone decide.
      scale: zero-based.
    """
    _, height, width, _ = sampled_Bhwd.shape
    source = normalised_residual(jnp.asarray(given.features_Bhwd), total_Bhwd, (height, width)) > 0
    kept = given.kept[scale][..., None]
    if margins is not None:
        sign = jnp.where(source, 1.0, -1.0)
        change = jax.nn.log_sigmoid(sign * margins.prompt) - jax.nn.log_sigmoid(
            sign * margins.other
        )
        likely = change >= -given.tolerance_B[:, None, None, None]
        kept = kept | likely
    return jnp.where(kept, source, sampled_Bhwd)
