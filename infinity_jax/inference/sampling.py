"""Sampling: the user's settings, their static and traced parts, and bits from logits."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from infinity_jax.config import QuantizationConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule

FLIPS = 1  # folded into a scale's keys for the random numbers of flips


class SamplingNumbers(NamedTuple):
    """Traced sampling settings, one number per scale: changing them does not recompile."""

    guidance_K: jax.Array
    temperature_K: jax.Array


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """Static settings of generation: each value compiles a program of its own.

    Attributes:
      schedule: the token grids.
      guided: whether the batch has an unconditional half at all.
      guidance_layer, top_k, top_p, unguided_scales: see `SamplingConfig`.
      int8_cache: keep keys and values of earlier scales in 8 bits.
    """

    schedule: ScaleSchedule
    guided: bool = True
    guidance_layer: int = 0
    top_k: int = 0
    top_p: float = 0.97
    unguided_scales: int = 0
    int8_cache: bool = False

    def __post_init__(self):
        if self.unguided_scales > len(self.schedule):
            raise UserError(
                f'unguided_scales is {self.unguided_scales}; the image has {len(self.schedule)} '
                'scales'
            )

    def guided_at(self, scale: int) -> bool:
        """Whether a scale runs with guidance; the last `unguided_scales` do not."""
        return self.guided and scale < len(self.schedule) - self.unguided_scales

    def hidden_layer(self, config: TransformerConfig, scale: int) -> int | None:
        """The zero-based block after which a scale guides hidden states; None if it does not.

        Raises:
          UserError: the model has no such block.
        """
        if self.guidance_layer == 0 or not self.guided_at(scale):
            return None
        if config.depth + self.guidance_layer < 0:
            raise UserError(
                f'guidance layer {self.guidance_layer} does not exist; the model has '
                f'{config.depth} layers'
            )
        return config.depth + self.guidance_layer


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How images are sampled (paper 4; for the released 2B guidance 3-4, temperature 0.5-1).

    Guidance and temperature are one number or one per scale; their values are traced, so changing
    them does not recompile.
    """

    guidance: float | tuple[float, ...] = 3.0  # classifier-free guidance g: g·cond + (1−g)·uncond
    temperature: float | tuple[float, ...] = 0.5  # logits are divided by it
    top_k: int = 0  # 1 is greedy; 0 and 2 change nothing
    top_p: float = 0.97  # a bit value of probability ≤ 1 − top_p is never taken; 1 switches off
    guidance_layer: int = 0  # 0: on logits; −n: on hidden states after zero-based block depth − n
    unguided_scales: int = 0  # number of last scales that run without the unconditional half

    def __post_init__(self):
        for name in ('guidance', 'temperature'):
            values = getattr(self, name)
            values = _per_scale(values)
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
        if self.unguided_scales < 0:
            raise UserError(f'unguided_scales is {self.unguided_scales}; wanted 0 or more')
        if any(not t > 0 for t in _per_scale(self.temperature)):
            raise UserError(
                f'temperature is {self.temperature}; it must be positive. For greedy sampling '
                'set top_k to 1'
            )

    @property
    def guided(self) -> bool:
        """Whether any guidance is other than 1, which leaves guidance out.

        Without a schedule: a single number counts even if `unguided_scales` are all scales.
        """
        values = _per_scale(self.guidance)
        return _any_guided(values, self.unguided_scales if len(values) > 1 else 0)

    def static(
        self, schedule: ScaleSchedule, quantization: QuantizationConfig = QuantizationConfig()
    ) -> GenerationSettings:
        """The part that is compiled in. Guidance of 1 everywhere needs no unconditional half.

        Raises:
          UserError: more scales are unguided than the schedule has.
        """
        unguided = self.unguided_scales or quantization.former_unguided_scales
        values = _per_scale(self.guidance)
        values *= len(schedule) if len(values) == 1 else 1
        return GenerationSettings(
            schedule,
            guided=_any_guided(values, unguided),
            guidance_layer=self.guidance_layer,
            top_k=self.top_k,
            top_p=self.top_p,
            unguided_scales=unguided,
            int8_cache=quantization.cache == 'int8',
        )

    def traced(self, schedule: ScaleSchedule) -> SamplingNumbers:
        """The part that a compiled program takes as arrays.

        Raises:
          UserError: numbers for another count of scales.
        """
        scales = len(schedule)
        return SamplingNumbers(
            jnp.array(self.per_scale('guidance', scales), jnp.float32),
            jnp.array(self.per_scale('temperature', scales), jnp.float32),
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


def check_unguided(guidance: float | tuple[float, ...], guided: bool) -> None:
    """Refuses a call with guidance of a model that was loaded without.

    Args:
      guidance: of the call.
      guided: whether the call has any, see `SamplingConfig.guided`.

    Raises:
      UserError: it has.
    """
    if guided:
        numbers = ', '.join(f'{number:g}' for number in _per_scale(guidance))
        raise UserError(
            f'guidance is {numbers}, but the model is loaded for calls without any: set guidance '
            'to 1, or load the model with guided=True'
        )


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
    """Samples bits (B, …) bool from logits (B, …, 2) after `keep_likely`, each image by its key.

    The bit is 1 with probability sigmoid(l₁ − l₀); an infinite margin leaves no choice. An image
    depends on its own key only, never on what else is in the batch.
    """
    margin = logits[..., 1] - logits[..., 0]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, margin.shape[1:]))(keys_B)
    return uniform < jax.nn.sigmoid(margin)


def flip_bits(keys_B: jax.Array, bits: jax.Array, rate: jax.Array) -> jax.Array:
    """Flips each of the bits (B, …) with probability `rate`, as self-correction does in training.

    The bits flipped at a rate are flipped at any higher rate as well. The random numbers are not
    those that `sample_bits` takes from the same keys.
    """

    def uniform(key: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, FLIPS), bits.shape[1:])

    return bits ^ (jax.vmap(uniform)(keys_B) < rate)


def _any_guided(values: tuple[float, ...], unguided: int) -> bool:
    """Whether any scale but the last `unguided` has guidance."""
    return any(g != 1 for g in values[: max(len(values) - unguided, 0)])


def _per_scale(values: float | tuple[float, ...]) -> tuple[float, ...]:
    """A number alone as a tuple of one."""
    return (values,) if isinstance(values, int | float) else tuple(values)
