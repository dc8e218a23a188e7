"""Coarse-to-fine generation in one compiled program (paper 3.3, 4)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from infinity_jax.config import QuantizationConfig
from infinity_jax.images import to_uint8
from infinity_jax.inference.scale_steps import (
    Controls,
    Mode,
    Text,
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
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import generation_compiler_options
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.tiled_decoder import decode as decode_features
from infinity_jax.transformer.kv_cache import KeyValueCache
from infinity_jax.transformer.model import Transformer


class GeneratedBits(NamedTuple):
    """What generation leaves.

    Attributes:
      bits: per scale (B, h, w, d) bool, on the code grids.
      total_Bhwd: their accumulated codes, which the decoder reads.
      logits: per scale (B, h·w, d, 2) after guidance and temperature, before top-k and top-p; if
        they were asked for.
    """

    bits: tuple[jax.Array, ...]
    total_Bhwd: jax.Array
    logits: tuple[jax.Array, ...]


def generate_bits(
    model: Transformer,
    variables: Any,
    keys_B: jax.Array,
    text: Text,
    controls: Controls,
    schedule: ScaleSchedule,
    *,
    negative: Text | None = None,
    guided: bool = True,
    guidance_layer: int = 0,
    top_k: int = 0,
    top_p: float = 0.97,
    quantization: QuantizationConfig = QuantizationConfig(),
    forced_bits: Sequence[jax.Array] | None = None,
    keep_logits: bool = False,
) -> GeneratedBits:
    """Draws the bits of all scales. Under jit: arrays are traced, all else is static.

    Args:
      variables: the transformer's variables.
      keys_B: one random key an image.
      text: encoded prompts, as many or a whole fraction of that.
      negative: replaces the learned unconditional text; padded to the same length as `text`.
      guided: whether the unconditional half runs at all.
      guidance_layer: 0 guides logits, −n hidden states after zero-based block depth − n.
      quantization: of its cache, and which scales run unguided.
      forced_bits: per scale (B, h, w, d): accumulated instead of the drawn bits, for parity
        checks that must not drift.
      keep_logits: return each scale's logits as well.
    """
    whole = Mode(guided, guidance_layer, top_k, top_p, quantization)
    images = keys_B.shape[0]

    def apply(method, *args):
        return model.apply(variables, *args, method=method)

    condition = embed_prompts(model, variables, text, negative, guided)
    text_keys_values = apply(Transformer.text_keys_values, condition.context_BTD)
    condition = for_images(condition, images, guided)
    rows = condition.pooled_BD.shape[0]
    cache = KeyValueCache.empty(model.config, schedule, rows, quantization.cache == 'int8')
    total = no_codes(model, schedule, images)
    all_bits, all_logits = [], []
    for scale in range(len(schedule)):
        mode = whole.at_scale(scale, len(schedule))
        if guided and not mode.guided:
            # No guided scale comes behind an unguided one: it would miss keys.
            guided, condition = False, conditional_half(condition)
            text_keys_values = conditional_half(text_keys_values, rows_axis=1)
        x_BLD = embed_scale_inputs(model, variables, condition, total, schedule, scale, guided)
        x_BLD, cache = apply(
            Transformer.generate_scale,
            x_BLD,
            condition,
            text_keys_values,
            cache,
            schedule,
            scale,
            hidden_guidance(model, controls, scale, mode),
        )
        bits, logits = sample_scale_bits(
            model, variables, condition, x_BLD, keys_B, controls, schedule, scale, mode
        )
        all_bits.append(bits)
        if keep_logits:
            all_logits.append(logits)
        total = add_bits(total, bits if forced_bits is None else forced_bits[scale])
    return GeneratedBits(tuple(all_bits), total, tuple(all_logits))


@functools.partial(
    PlatformJit,
    compiler_options=generation_compiler_options,
    static_argnames=(
        'model',
        'autoencoder',
        'schedule',
        'guided',
        'guidance_layer',
        'top_k',
        'top_p',
        'quantization',
    ),
)
def generate_images(
    model: Transformer,
    autoencoder: Autoencoder,
    variables: Any,
    autoencoder_variables: Any,
    keys_B: jax.Array,
    text: Text,
    controls: Controls,
    schedule: ScaleSchedule,
    negative: Text | None = None,
    guided: bool = True,
    guidance_layer: int = 0,
    top_k: int = 0,
    top_p: float = 0.97,
    quantization: QuantizationConfig = QuantizationConfig(),
) -> jax.Array:
    """Text features to uint8 images (B, Y, X, 3) in one compiled call; see `generate_bits`."""
    drawn = generate_bits(
        model,
        variables,
        keys_B,
        text,
        controls,
        schedule,
        negative=negative,
        guided=guided,
        guidance_layer=guidance_layer,
        top_k=top_k,
        top_p=top_p,
        quantization=quantization,
    )
    return to_uint8(decode_features(autoencoder, autoencoder_variables, drawn.total_Bhwd))


@functools.partial(
    PlatformJit,
    compiler_options=generation_compiler_options,
    static_argnames=('model', 'schedule', 'mode'),
)
def generate_codes(
    model: Transformer,
    variables: Any,
    keys_B: jax.Array,
    text: Text,
    controls: Controls,
    schedule: ScaleSchedule,
    negative: Text | None,
    mode: Mode,
) -> jax.Array:
    """The transformer's part of `generate_images`: accumulated codes (B, h, w, d)."""
    return generate_bits(
        model,
        variables,
        keys_B,
        text,
        controls,
        schedule,
        negative=negative,
        **{field.name: getattr(mode, field.name) for field in dataclasses.fields(mode)},
    ).total_Bhwd


@functools.partial(
    PlatformJit, compiler_options=generation_compiler_options, static_argnames='autoencoder'
)
def decode(autoencoder: Autoencoder, variables: Any, total_Bhwd: jax.Array) -> jax.Array:
    """The decoder's part: accumulated codes to uint8 images (B, Y, X, 3)."""
    return to_uint8(decode_features(autoencoder, variables, total_Bhwd))
