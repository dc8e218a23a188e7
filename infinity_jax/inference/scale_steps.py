"""The steps of generation around the transformer's layers, as pure functions.

Two callers run them and generate the same bits: `generate` in one compiled program, `cpu_layerwise`
in several.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from infinity_jax.inference.given_bits import GivenBits, Margins, with_given_bits
from infinity_jax.inference.sampling import (
    GenerationSettings,
    SamplingNumbers,
    flip_bits,
    keep_likely,
    sample_bits,
)
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.quantizer import (
    accumulate,
    codes_from_bits,
    depth_to_space,
    flatten_tokens,
    next_input,
)
from infinity_jax.transformer.conditioning import Conditioning
from infinity_jax.transformer.index_classifier import (
    bits_from_indices,
    likely_indices,
    sample_indices,
)
from infinity_jax.transformer.model import HiddenGuidance, Transformer


class Text(NamedTuple):
    """Encoded prompts: features (P, T, E), padded, and their true lengths (P,).

    Every prompt has the same number of images: of B images, B/P consecutive ones share a prompt.
    """

    features_BTE: jax.Array
    lengths_B: jax.Array


class GenerationInputs(NamedTuple):
    """All traced arrays of generation but the parameters.

    Attributes:
      keys_B: one random key per image.
      text: encoded prompts; their number divides that of the images.
      numbers: guidance and temperature per scale.
      negative: replaces the learned unconditional text; padded to the same length as `text`.
      given: bits of source images; None is another program, which has no trace of them.
      flip_rate: probability with which a sampled bit of any scale but the last is flipped; None is
        another program, which flips nothing.
    """

    keys_B: jax.Array
    text: Text
    numbers: SamplingNumbers
    negative: Text | None = None
    given: GivenBits | None = None
    flip_rate: jax.Array | None = None


def embed_prompts(
    model: Transformer, variables: Any, inputs: GenerationInputs, guided: bool
) -> Conditioning:
    """Conditioning of P prompts; with guidance of 2P rows, the conditional half first."""
    text, negative = inputs.text, inputs.negative
    if guided:
        if negative is None:
            features = model.apply(
                variables, text.features_BTE, method=Transformer.unconditional_text
            )
            negative = Text(cast(jax.Array, features), text.lengths_B)
        text = Text(*(jnp.concatenate(pair) for pair in zip(text, negative, strict=True)))
    conditioning = model.apply(variables, *text, tiled=True, method=Transformer.encode_text)
    return cast(Conditioning, conditioning)


def for_images(conditioning: Conditioning, images: int, guided: bool) -> Conditioning:
    """Conditioning with pooled text and modulation repeated for the images of each prompt.

    What attends to the text keeps one row per prompt: cross-attention joins the images' tokens.
    """
    repeats = images * (2 if guided else 1) // conditioning.lengths_B.shape[0]
    return conditioning._replace(
        pooled_BD=jnp.repeat(conditioning.pooled_BD, repeats, axis=0),
        modulation_B6D=jnp.repeat(conditioning.modulation_B6D, repeats, axis=0),
    )


def conditional_half(tree: Any, rows_axis: int = 0) -> Any:
    """The first half of arrays whose batch is doubled for guidance, for scales without it."""

    def half(x: jax.Array) -> jax.Array:
        return jax.lax.slice_in_dim(x, 0, x.shape[rows_axis] // 2, axis=rows_axis)

    return jax.tree.map(half, tree)


def no_codes(model: Transformer, schedule: ScaleSchedule, images: int) -> jax.Array:
    """The accumulated codes (B, h, w, d) before the first scale: zeros."""
    grid = schedule.code_grids(model.config.spatial_patchify)[-1]
    return jnp.zeros((images, *grid, model.config.bits), jnp.float32)


def embed_scale_inputs(
    model: Transformer,
    variables: Any,
    conditioning: Conditioning,
    total_Bhwd: jax.Array,
    settings: GenerationSettings,
    scale: int,
) -> jax.Array:
    """Tokens (B or 2B, h·w, D) of one scale, from the codes accumulated so far."""
    tokens = None
    if scale:
        patchify = model.config.spatial_patchify
        grid = settings.schedule.code_grids(patchify)[scale]
        tokens = flatten_tokens(next_input(total_Bhwd, grid), patchify)
        if settings.guided_at(scale):
            tokens = jnp.concatenate([tokens, tokens])
    x_BLD = model.apply(variables, conditioning, tokens, scale, method=Transformer.embed_scale)
    return cast(jax.Array, x_BLD)


def hidden_guidance(
    model: Transformer, numbers: SamplingNumbers, settings: GenerationSettings, scale: int
) -> HiddenGuidance | None:
    """How the layers mix the halves of a scale's batch; None unless hidden states are guided."""
    layer = settings.hidden_layer(model.config, scale)
    return None if layer is None else HiddenGuidance(layer, numbers.guidance_K[scale])


def sample_scale_bits(
    model: Transformer,
    variables: Any,
    conditioning: Conditioning,
    x_BLD: jax.Array,
    total_Bhwd: jax.Array,
    inputs: GenerationInputs,
    settings: GenerationSettings,
    scale: int,
) -> tuple[jax.Array, jax.Array]:
    """Bits (B, h, w, d) of one scale on the code grid, and the logits (B, h·w, d, 2) behind them.

    An index classifier has logits (B, h·w, 2^d), and its top-k and top-p choose among indices.

    Args:
      model, variables: the transformer.
      conditioning: of the rows of `x_BLD`.
      x_BLD: hidden states after the last layer.
      total_Bhwd: codes accumulated at earlier scales.
      inputs: keys, sampling numbers and, if there are any, given bits and a rate of flips.
      settings: the static settings.
      scale: zero-based.
    """
    batch, numbers = inputs.keys_B.shape[0], inputs.numbers
    guide_logits = settings.guided_at(scale) and settings.guidance_layer == 0
    if not guide_logits:  # guidance on hidden states leaves both halves equal: read the first
        conditioning = conditioning._replace(pooled_BD=conditioning.pooled_BD[:batch])
        x_BLD = x_BLD[:batch]
    computed = model.apply(variables, x_BLD, conditioning, tiled=True, method=Transformer.logits)
    logits = cast(jax.Array, computed) / numbers.temperature_K[scale]
    if guide_logits:
        guidance = numbers.guidance_K[scale]
        conditional, unconditional = jnp.split(logits, 2)
        logits = guidance * conditional + (1 - guidance) * unconditional
    scale_keys = jax.vmap(jax.random.fold_in, (0, None))(inputs.keys_B, scale)
    if model.config.classifier == 'index':
        likely = likely_indices(logits, settings.top_k, settings.top_p)
        bits = bits_from_indices(sample_indices(scale_keys, likely), model.config.token_bits)
    else:
        bits = sample_bits(scale_keys, keep_likely(logits, settings.top_k, settings.top_p))
    bits = _on_code_grid(model, bits, settings, scale)
    if inputs.flip_rate is not None and scale + 1 < len(settings.schedule):
        bits = flip_bits(scale_keys, bits, inputs.flip_rate)
    if inputs.given is not None:
        margins = None
        if guide_logits:
            both = cast(jax.Array, computed)[..., 1] - cast(jax.Array, computed)[..., 0]
            margins = Margins(
                *(_on_code_grid(model, half, settings, scale) for half in jnp.split(both, 2))
            )
        bits = with_given_bits(inputs.given, total_Bhwd, bits, margins, scale)
    return bits, logits


def _on_code_grid(
    model: Transformer, values: jax.Array, settings: GenerationSettings, scale: int
) -> jax.Array:
    """One value per bit of each token, (B, h·w, bits of a token), as (B, h, w, d) of codes."""
    grid = settings.schedule.grids[scale]
    values = values.reshape(values.shape[0], *grid, model.config.token_bits)
    return depth_to_space(values) if model.config.spatial_patchify else values


def add_bits(total_Bhwd: jax.Array, bits_Bhwd: jax.Array) -> jax.Array:
    """The accumulated codes with those of one more scale."""
    return accumulate(total_Bhwd, codes_from_bits(bits_Bhwd))
