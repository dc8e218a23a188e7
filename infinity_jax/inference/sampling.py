"""Drawing bits from their two logits."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from infinity_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn (paper 4; the released 2B likes guidance 3-4, temperature 0.5-1).

    Guidance and temperature are one number or one per scale; their values are traced, so changing
    them does not recompile.
    """

    guidance: float | tuple[float, ...] = 3.0  # classifier-free guidance g: g·cond + (1−g)·uncond
    temperature: float | tuple[float, ...] = 0.5  # logits are divided by it
    top_k: int = 0  # 1 is greedy; 0 and 2 change nothing
    top_p: float = 0.97  # a bit value of probability ≤ 1 − top_p is never taken; 1 switches off
    guidance_layer: int = 0  # 0: on logits; −n: on hidden states after zero-based block depth − n

    def __post_init__(self):
        for name in ('guidance', 'temperature'):
            values = getattr(self, name)
            values = (values,) if isinstance(values, int | float) else tuple(values)
            if not values or not all(math.isfinite(value) for value in values):
                raise UserError(f'{name} is {values}; wanted a finite number, or one per scale')
            object.__setattr__(self, name, values)
        if self.guidance_layer > 0:
            raise UserError(
                f'guidance_layer is {self.guidance_layer}; wanted 0 (logits) or -n (hidden states '
                'after block depth - n)'
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f'top_p is {self.top_p}; choose a number in (0, 1], 1 to switch it off')
        if self.top_k not in (0, 1, 2):
            raise UserError(f'top_k is {self.top_k}; a bit has two values: 0 (off), 1 or 2')
        if any(not t > 0 for t in self.temperature):
            raise UserError(
                f'temperature is {self.temperature}; it must be positive. For greedy drawing '
                'set top_k to 1'
            )

    def per_scale(self, name: str, scales: int) -> tuple[float, ...]:
        """`guidance` or `temperature` as one number per scale."""
        values = getattr(self, name)
        if len(values) == 1:
            return values * scales
        if len(values) != scales:
            raise UserError(
                f'{name} lists {len(values)} numbers for {scales} scales; give one number or one '
                'per scale'
            )
        return values


def keep_likely(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Logits (…, 2) with the values that sampling must not take at −inf."""
    if top_k == 1:
        best = logits.max(-1, keepdims=True)
        logits = jnp.where(logits < best, -jnp.inf, logits)
    if top_p < 1:
        probabilities = jax.nn.softmax(logits, axis=-1)
        unlikely = (probabilities <= 1 - top_p) & (logits < logits.max(-1, keepdims=True))
        logits = jnp.where(unlikely, -jnp.inf, logits)
    return logits


def sample_bits(keys_B: jax.Array, logits: jax.Array) -> jax.Array:
    """Bits (B, …) bool drawn from logits (B, …, 2) after `keep_likely`, each image by its key.

    The bit is 1 with probability sigmoid(l₁ − l₀); an infinite margin leaves no choice. An image
    depends on its own key only, never on what else is in the batch.
    """
    margin = logits[..., 1] - logits[..., 0]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, margin.shape[1:]))(keys_B)
    return uniform < jax.nn.sigmoid(margin)
