"""Coarse-to-fine generation in one compiled program (paper 3.3, 4)."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

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
from infinity_jax.transformer.attention_choice import after_fault
from infinity_jax.transformer.conditioning import Conditioning
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
        Transformer(required(configs.transformer, 'transformer'), configs.attention),
        Autoencoder(required(configs.tokenizer, 'tokenizer'), precision=quantization.decoder),
    )


def networks_after_fault(networks: Networks, error: RuntimeError) -> Networks:
    """The networks to go on with after a program's error, see `attention_choice.after_fault`."""
    model = networks.transformer
    model = model.clone(implementation=after_fault(model.implementation, error))
    return networks._replace(transformer=model)


class NetworkParams(NamedTuple):
    """Parameters of the networks that generate; of the tokenizer the decoder alone."""

    transformer: Any
    tokenizer: Any


class GeneratedBits(NamedTuple):
    """The bits of a batch of images.

    Attributes:
      bits: per scale (B, h, w, d) bool, on the code grids.
      total_Bhwd: their accumulated codes, which the decoder reads.
      logits: per scale (B, h·w, d, 2), or (B, h·w, 2^d) of an index classifier, after guidance and
        temperature, before top-k and top-p; if they were asked for.
    """

    bits: tuple[jax.Array, ...]
    total_Bhwd: jax.Array
    logits: tuple[jax.Array, ...]


class TextState(NamedTuple):
    """What every scale reads of the prompts: conditioning, and keys and values of each layer."""

    conditioning: Conditioning
    keys_values: Any


class ScaleState(NamedTuple):
    """Generation between two scales.

    Attributes:
      text: of the rows of the scale before, or of the first.
      cache: keys and values of the scales before.
      total_Bhwd: codes accumulated so far.
    """

    text: TextState
    cache: KeyValueCache
    total_Bhwd: jax.Array


def begin(
    model: Transformer, variables: Any, inputs: GenerationInputs, settings: GenerationSettings
) -> ScaleState:
    """Encoded prompts, an empty cache and no codes."""
    images = inputs.keys_B.shape[0]
    conditioning = embed_prompts(model, variables, inputs, settings.guided)
    keys_values = model.apply(
        variables, conditioning.context_BTD, method=Transformer.text_keys_values
    )
    conditioning = for_images(conditioning, images, settings.guided)
    rows = conditioning.pooled_BD.shape[0]
    cache = KeyValueCache.empty(model.config, settings.schedule, rows, settings.int8_cache)
    text = TextState(conditioning, keys_values)
    return ScaleState(text, cache, no_codes(model, settings.schedule, images))


def advance(
    model: Transformer,
    variables: Any,
    state: ScaleState,
    inputs: GenerationInputs,
    settings: GenerationSettings,
    scale: int,
    forced_Bhwd: jax.Array | None = None,
) -> tuple[ScaleState, jax.Array, jax.Array]:
    """One scale: its tokens through all layers, its bits (B, h, w, d), and their logits.

    Args:
      model, variables: the transformer.
      state: after the scale before.
      inputs, settings: of the whole generation.
      scale: zero-based.
      forced_Bhwd: accumulated instead of the sampled bits.
    """
    (conditioning, keys_values), cache, total = state
    images = inputs.keys_B.shape[0]
    if conditioning.pooled_BD.shape[0] > images and not settings.guided_at(scale):
        # No guided scale follows an unguided one: it would miss keys.
        conditioning = conditional_half(conditioning)
        keys_values = conditional_half(keys_values, rows_axis=1)
    x_BLD = embed_scale_inputs(model, variables, conditioning, total, settings, scale)
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
    bits, logits = sample_scale_bits(
        model, variables, conditioning, x_BLD, total, inputs, settings, scale
    )
    total = add_bits(total, bits if forced_Bhwd is None else forced_Bhwd)
    return ScaleState(TextState(conditioning, keys_values), cache, total), bits, logits


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
    state = begin(model, variables, inputs, settings)
    all_bits, all_logits = [], []
    for scale in range(len(settings.schedule)):
        forced = None if forced_bits is None else forced_bits[scale]
        state, bits, logits = advance(model, variables, state, inputs, settings, scale, forced)
        all_bits.append(bits)
        if keep_logits:
            all_logits.append(logits)
    return GeneratedBits(tuple(all_bits), state.total_Bhwd, tuple(all_logits))


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
