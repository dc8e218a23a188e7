"""Generation as one program per scale: the host sees the codes of every scale as they come.

A server shows them as previews, and stops between two scales when nobody waits any longer. The one
program of `generate` starts once and has less to hand over; both run the same steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from infinity_jax.inference import generate
from infinity_jax.inference.generate import ScaleState, TextState
from infinity_jax.inference.sampling import GenerationSettings
from infinity_jax.inference.scale_steps import GenerationInputs
from infinity_jax.runtime.platform import PlatformJit
from infinity_jax.sharding import generation_compiler_options
from infinity_jax.transformer.kv_cache import KeyValueCache
from infinity_jax.transformer.model import Transformer

OnScale = Callable[[int, jax.Array], None]

_begin = PlatformJit(
    generate.begin,
    compiler_options=generation_compiler_options,
    static_argnames=('model', 'settings'),
)


def generate_by_scale(
    model: Transformer,
    variables: Any,
    inputs: GenerationInputs,
    settings: GenerationSettings,
    on_scale: OnScale,
) -> jax.Array:
    """Generates the accumulated codes (B, h, w, d); see `generate.generate_bits`.

    Args:
      model, variables: the transformer.
      inputs: keys, texts, sampling numbers and, if there are any, given bits.
      settings: static.
      on_scale: called after each scale with its zero-based number and the codes accumulated so
        far. An exception that it raises ends the generation.
    """
    text, cache, total = _begin(model, variables, inputs, settings)
    for scale in range(len(settings.schedule)):
        text, cache, total = _advance(model, variables, text, cache, total, inputs, settings, scale)
        on_scale(scale, total)
    return total


@functools.partial(
    PlatformJit,
    compiler_options=generation_compiler_options,
    static_argnames=('model', 'settings', 'scale'),
    donate_argnames='cache',  # the caller may keep the codes
)
def _advance(
    model: Transformer,
    variables: Any,
    text: TextState,
    cache: KeyValueCache,
    total_Bhwd: jax.Array,
    inputs: GenerationInputs,
    settings: GenerationSettings,
    scale: int,
) -> ScaleState:
    """`generate.advance` without bits and logits."""
    state = ScaleState(text, cache, total_Bhwd)
    return generate.advance(model, variables, state, inputs, settings, scale)[0]
