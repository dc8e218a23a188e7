"""Losses of tokenizer training: reconstruction, commitment and the entropy penalty of BSQ.

Source: paper 3.2 and binary spherical quantization (arXiv 2406.07548). LPIPS and the
adversarial terms have modules of their own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

INVERSE_TEMPERATURE = 100.0  # β, as released


class EntropyTerms(NamedTuple):
    """Entropies in nats, each summed over the d bits.

    Attributes:
      per_sample: mean over positions of the entropy of each position's bit probabilities; small
        where codes are certain.
      codebook: entropy of the bit probabilities averaged over the batch; d·log 2 where every bit is
        0 half of the time.
    """

    per_sample: jax.Array
    codebook: jax.Array


def bit_logits(z_Bhwd: jax.Array, inverse_temperature: float = INVERSE_TEMPERATURE) -> jax.Array:
    """Log-odds −4·z·β/√d that a bit is 0: softmax of −β times the squared distance to ±1/√d."""
    return -4.0 * z_Bhwd * inverse_temperature / z_Bhwd.shape[-1] ** 0.5


def bit_entropies(
    z_Bhwd: jax.Array, inverse_temperature: float = INVERSE_TEMPERATURE
) -> EntropyTerms:
    """Both entropies of one scale's L2-normalised residuals, at a cost linear in d.

    Probabilities stay logits throughout: −p·log p of a saturated sigmoid is 0·∞, which is NaN in a
    plain formula (seen at d = 32). Float32: saturated probabilities need its range of exponents.

    Args:
      z_Bhwd: (..., d); all leading axes are positions to average over.
    """
    d = z_Bhwd.shape[-1]
    a = bit_logits(z_Bhwd.astype(jnp.float32), inverse_temperature).reshape(-1, d)
    # H(σ(a)) = log(1 + e^−|a|) + |a|·σ(−|a|): no cancellation at either end.
    size = jnp.abs(a)
    per_sample = jnp.mean(jnp.sum(jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size), axis=-1))
    # Averages of probabilities as log-mean-exp, so that log p and log(1 − p) both stay finite.
    log_count = jnp.log(jnp.float32(a.shape[0]))
    log_p0 = jax.nn.logsumexp(jax.nn.log_sigmoid(a), axis=0) - log_count
    log_p1 = jax.nn.logsumexp(jax.nn.log_sigmoid(-a), axis=0) - log_count
    codebook = -jnp.sum(jnp.exp(log_p0) * log_p0 + jnp.exp(log_p1) * log_p1)
    return EntropyTerms(per_sample, codebook)


def entropy_penalty(
    normalised: tuple[jax.Array, ...], inverse_temperature: float = INVERSE_TEMPERATURE
) -> jax.Array:
    """(per-sample − codebook entropy) / β of each scale, averaged over scales.

    If the positions of all scales were pooled, the many fine ones would hide coarse bits that never
    change.

    Args:
      normalised: z per scale, (B, h, w, d).
    """
    terms = [bit_entropies(z, inverse_temperature) for z in normalised]
    differences = [t.per_sample - t.codebook for t in terms]
    return sum(differences, start=jnp.zeros(())) / (inverse_temperature * len(terms))


def commitment(normalised: tuple[jax.Array, ...]) -> jax.Array:
    """Squared distance of z to its code: summed over d, averaged over positions and scales."""
    distances = []
    for z in normalised:
        code = jnp.where(z > 0, 1.0, -1.0) / z.shape[-1] ** 0.5
        distances.append(jnp.mean(jnp.sum(jnp.square(z - jax.lax.stop_gradient(code)), axis=-1)))
    return sum(distances, start=jnp.zeros(())) / len(distances)


def reconstruction(pixels_BYX3: jax.Array, target_BYX3: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean |difference|, mean squared difference) of pixels in [-1, 1], not clamped."""
    difference = pixels_BYX3 - target_BYX3
    return jnp.mean(jnp.abs(difference)), jnp.mean(jnp.square(difference))
