"""Generation as one program per scale: the host sees the codes of every scale as they come.

A server shows them as previews, and stops between two scales when nobody waits any longer. The one
program of `generate` starts once and has less to hand over; both run the same steps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax

from infinity_jax.inference.sampling import GenerationSettings
from infinity_jax.inference.scale_steps import (
    GenerationInputs,
    add_bits,
    conditional_half,
    embed_prompts,
    embed_scale_inputs,
    for_images,
    hidden_guidance,
    no_codes,
    sample_scale_bits,
)
from infinity_jax.runtime.platform import PlatformJit
from infinity_jax.sharding import generation_compiler_options
from infinity_jax.transformer.conditioning import Conditioning
from infinity_jax.transformer.kv_cache import KeyValueCache
from infinity_jax.transformer.model import Transformer

OnScale = Callable[[int, jax.Array], None]


class TextState(NamedTuple):
    """What every scale reads of the prompts."""

    conditioning: Conditioning
    keys_values: Any


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
        cache, total = _run_scale(model, variables, inputs, text, cache, total, settings, scale)
        on_scale(scale, total)
    return total


@functools.partial(
    PlatformJit,
    compiler_options=generation_compiler_options,
    static_argnames=('model', 'settings'),
)
def _begin(
    model: Transformer, variables: Any, inputs: GenerationInputs, settings: GenerationSettings
) -> tuple[TextState, KeyValueCache, jax.Array]:
    """The conditioning, an empty cache and no codes."""
    images = inputs.keys_B.shape[0]
    conditioning = embed_prompts(model, variables, inputs, settings.guided)
    keys_values = model.apply(
        variables, conditioning.context_BTD, method=Transformer.text_keys_values
    )
    conditioning = for_images(conditioning, images, settings.guided)
    rows = conditioning.pooled_BD.shape[0]
    cache = KeyValueCache.empty(model.config, settings.schedule, rows, settings.int8_cache)
    return TextState(conditioning, keys_values), cache, no_codes(model, settings.schedule, images)


@functools.partial(
    PlatformJit,
    compiler_options=generation_compiler_options,
    static_argnames=('model', 'settings', 'scale'),
    donate_argnames='cache',
)
def _run_scale(
    model: Transformer,
    variables: Any,
    inputs: GenerationInputs,
    text: TextState,
    cache: KeyValueCache,
    total_Bhwd: jax.Array,
    settings: GenerationSettings,
    scale: int,
) -> tuple[KeyValueCache, jax.Array]:
    """One scale: its tokens through all layers, its bits, and the codes with them."""
    conditioning, keys_values = text
    if settings.guided and not settings.guided_at(scale):
        conditioning = conditional_half(conditioning)
        keys_values = conditional_half(keys_values, rows_axis=1)
    x_BLD = embed_scale_inputs(model, variables, conditioning, total_Bhwd, settings, scale)
    advanced = model.apply(
        variables,
        x_BLD,
        conditioning,
        keys_values,
        cache,
        settings.schedule,
        scale,
        hidden_guidance(model, inputs.numbers, settings, scale),
        method=Transformer.generate_scale,
    )
    x_BLD, cache = cast(tuple[jax.Array, KeyValueCache], advanced)
    bits, _ = sample_scale_bits(
        model, variables, conditioning, x_BLD, total_Bhwd, inputs, settings, scale
    )
    return cache, add_bits(total_Bhwd, bits)
