"""The bit loss: two-way cross-entropy per bit, weighted by scale (paper 3.3).

Logits are (B, L, d, 2) everywhere, or (B, L, 2^d) of an index classifier, whose loss and accuracy
are per bit as well.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.index_classifier import bits_from_indices, index_losses


class BitMetrics(NamedTuple):
    """Metrics per scale: means over images and tokens, so that averages over parts are exact.

    Attributes:
      loss, accuracy: (K,), means over bits too.
      ones: (K, d), how often each bit is 1.
    """

    loss: jax.Array
    accuracy: jax.Array
    ones: jax.Array

    @property
    def majority_rate(self) -> jax.Array:
        """(K,) the accuracy of always guessing each bit's more frequent value in this batch.

        A scale whose accuracy does not exceed it is not learned yet.
        """
        return jnp.maximum(self.ones, 1 - self.ones).mean(-1)


def token_weights(schedule: ScaleSchedule, reweight: bool) -> np.ndarray:
    """(L,) float32 weights that sum to 1: ∝ 1/√(h·w) of the token's scale, or all equal."""
    sizes = np.array([h * w for h, w in schedule.grids], np.float64)
    of_scale = 1 / np.sqrt(sizes) if reweight else np.ones_like(sizes)
    weights = of_scale[schedule.scale_of_token]
    return (weights / weights.sum()).astype(np.float32)


def token_losses(logits_BLd2: jax.Array, targets_BLd: jax.Array) -> jax.Array:
    """Cross-entropy of each token, (B, L): the mean over its bits, in nats, float32."""
    if logits_BLd2.ndim == targets_BLd.ndim:  # (B, L, 2^d)
        return index_losses(logits_BLd2, targets_BLd)
    logits = logits_BLd2.astype(jnp.float32)
    margin = logits[..., 1] - logits[..., 0]
    signed = jnp.where(targets_BLd.astype(bool), margin, -margin)
    return jax.nn.softplus(-signed).mean(-1)


def likeliest_bits(logits_BLd2: jax.Array, bits: int) -> jax.Array:
    """The likelier value of each bit, (B, L, d) bool: of an index classifier the likeliest code's.

    Args:
      logits_BLd2: logits.
      bits: d, per token.
    """
    if logits_BLd2.ndim == 3:
        return bits_from_indices(logits_BLd2.argmax(-1), bits)
    return logits_BLd2[..., 1] > logits_BLd2[..., 0]


def bit_loss(
    logits_BLd2: jax.Array,
    targets_BLd: jax.Array,
    schedule: ScaleSchedule,
    *,
    reweight: bool = True,
) -> tuple[jax.Array, BitMetrics]:
    """The training loss (a scalar, in nats per bit) and its parts by scale.

    Args:
      logits_BLd2: for each bit the logits of 0 and 1; or (B, L, 2^d), those of each index.
      targets_BLd: true bits, bool or 0/1.
      reweight: weight tokens by 1/√(h·w), so that coarse scales count more than by their tokens.
    """
    losses_BL = token_losses(logits_BLd2, targets_BLd)
    weights = jnp.asarray(token_weights(schedule, reweight))
    loss = (losses_BL * weights[None]).sum(-1).mean()
    right = likeliest_bits(logits_BLd2, targets_BLd.shape[-1]) == targets_BLd.astype(bool)
    right_BL = right.mean(-1, dtype=jnp.float32)
    per_scale = []
    for start, end in schedule.spans:
        ones = targets_BLd[:, start:end].astype(jnp.float32).mean((0, 1))
        per_scale.append((losses_BL[:, start:end].mean(), right_BL[:, start:end].mean(), ones))
    return loss, BitMetrics(*(jnp.stack(column) for column in zip(*per_scale, strict=True)))
