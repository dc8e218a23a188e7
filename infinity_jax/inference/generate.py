"""Coarse-to-fine generation in one compiled program (paper 3.3, 4)."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from infinity_jax.config import ModelConfigs, QuantizationConfig, required
from infinity_jax.images import to_uint8
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
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.tiled_decoder import decode as decode_features
from infinity_jax.transformer.kv_cache import KeyValueCache
from infinity_jax.transformer.model import Transformer


class Networks(NamedTuple):
    """The networks that generate; static."""

    transformer: Transformer
    autoencoder: Autoencoder


def networks_of(
    configs: ModelConfigs, quantization: QuantizationConfig = QuantizationConfig()
) -> Networks:
    """The networks of a model that generate.

    Raises:
      UserError: the model lacks one.
    """
    return Networks(
        Transformer(required(configs.transformer, 'transformer')),
        Autoencoder(required(configs.tokenizer, 'tokenizer'), precision=quantization.decoder),
    )


class NetworkParams(NamedTuple):
    """Parameters of the networks that generate; of the tokenizer the decoder alone."""

    transformer: Any
    tokenizer: Any


class GeneratedBits(NamedTuple):
    """The bits of a batch of images.

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
    inputs: GenerationInputs,
    settings: GenerationSettings,
    *,
    forced_bits: Sequence[jax.Array] | None = None,
    keep_logits: bool = False,
) -> GeneratedBits:
    """Generates the bits of all scales.

    Args:
      model: the transformer, static.
      variables: its variables.
      inputs: keys, texts, sampling numbers and, if there are any, given bits.
      settings: static.
      forced_bits: per scale (B, h, w, d): accumulated instead of the sampled bits, for parity
        checks that must not drift.
      keep_logits: return each scale's logits as well; static.
    """
    schedule = settings.schedule
    images = inputs.keys_B.shape[0]

    def apply(method, *args):
        return model.apply(variables, *args, method=method)

    guided = settings.guided
    conditioning = embed_prompts(model, variables, inputs, guided)
    text_keys_values = apply(Transformer.text_keys_values, conditioning.context_BTD)
    conditioning = for_images(conditioning, images, guided)
    rows = conditioning.pooled_BD.shape[0]
    cache = KeyValueCache.empty(model.config, schedule, rows, settings.int8_cache)
    total = no_codes(model, schedule, images)
    all_bits, all_logits = [], []
    for scale in range(len(schedule)):
        if guided and not settings.guided_at(scale):
            # No guided scale follows an unguided one: it would miss keys.
            guided, conditioning = False, conditional_half(conditioning)
            text_keys_values = conditional_half(text_keys_values, rows_axis=1)
        x_BLD = embed_scale_inputs(model, variables, conditioning, total, settings, scale)
        x_BLD, cache = apply(
            Transformer.generate_scale,
            x_BLD,
            conditioning,
            text_keys_values,
            cache,
            schedule,
            scale,
            hidden_guidance(model, inputs.numbers, settings, scale),
        )
        bits, logits = sample_scale_bits(
            model,
            variables,
            conditioning,
            x_BLD,
            total,
            inputs,
            settings,
            scale,
        )
        all_bits.append(bits)
        if keep_logits:
            all_logits.append(logits)
        total = add_bits(total, bits if forced_bits is None else forced_bits[scale])
    return GeneratedBits(tuple(all_bits), total, tuple(all_logits))


@functools.partial(
    PlatformJit,
    compiler_options=generation_compiler_options,
    static_argnames=('networks', 'settings'),
)
def generate_images(
    networks: Networks,
    params: NetworkParams,
    inputs: GenerationInputs,
    settings: GenerationSettings,
) -> jax.Array:
    """Text features to uint8 images (B, Y, X, 3) in one compiled call; see `generate_bits`."""
    variables = {'params': params.transformer}
    generated = generate_bits(networks.transformer, variables, inputs, settings)
    pixels = decode_features(
        networks.autoencoder, {'params': params.tokenizer}, generated.total_Bhwd
    )
    return to_uint8(pixels)


@functools.partial(
    PlatformJit,
    compiler_options=generation_compiler_options,
    static_argnames=('model', 'settings'),
)
def generate_codes(
    model: Transformer, variables: Any, inputs: GenerationInputs, settings: GenerationSettings
) -> jax.Array:
    """The transformer's part of `generate_images`: accumulated codes (B, h, w, d)."""
    return generate_bits(model, variables, inputs, settings).total_Bhwd


@functools.partial(
    PlatformJit, compiler_options=generation_compiler_options, static_argnames='autoencoder'
)
def decode(autoencoder: Autoencoder, variables: Any, total_Bhwd: jax.Array) -> jax.Array:
    """The decoder's part of `generate_images`: accumulated codes to uint8 images (B, Y, X, 3)."""
    return to_uint8(decode_features(autoencoder, variables, total_Bhwd))
