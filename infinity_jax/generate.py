"""Coarse-to-fine generation in one compiled program (paper 3.3, 4)."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infinity_jax.config import UserError
from infinity_jax.economy import Economy
from infinity_jax.sampling import SamplingConfig, keep_likely, sample_bits
from infinity_jax.scales import ScaleSchedule
from infinity_jax.self_correction import flatten_tokens
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.decode import decode
from infinity_jax.tokenizer.patchify import unfold
from infinity_jax.tokenizer.quantizer import accumulate, codes_from_bits, next_input
from infinity_jax.transformer.cache import KeyValueCache
from infinity_jax.transformer.model import HiddenGuidance, Transformer


class Text(NamedTuple):
    """Encoded prompts: features (B, T, E), padded, and their true lengths (B,)."""

    features_BTE: jax.Array
    lengths_B: jax.Array


class Controls(NamedTuple):
    """Traced sampling numbers, one per scale: changing them does not recompile."""

    guidance_K: jax.Array
    temperature_K: jax.Array


class Drawn(NamedTuple):
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


def controls(sampling: SamplingConfig, schedule: ScaleSchedule) -> Controls:
    """The traced part of a sampling configuration."""
    scales = len(schedule)
    return Controls(
        jnp.array(sampling.per_scale('guidance', scales), jnp.float32),
        jnp.array(sampling.per_scale('temperature', scales), jnp.float32),
    )


def draw_bits(
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
    economy: Economy = Economy(),
    forced_bits: Sequence[jax.Array] | None = None,
    keep_logits: bool = False,
) -> Drawn:
    """Draws the bits of all scales. Under jit: arrays are traced, all else is static.

    Args:
      variables: the transformer's variables.
      keys_B: one random key a picture.
      text: encoded prompts.
      negative: replaces the learned unconditional text; padded to the same length as `text`.
      guided: whether the unconditional half runs at all.
      guidance_layer: 0 guides logits, −n hidden states after zero-based block depth − n.
      economy: of its cache, and which scales run unguided.
      forced_bits: per scale (B, h, w, d): accumulated instead of the drawn bits, for parity
        checks that must not drift.
      keep_logits: return each scale's logits as well.
    """
    config = model.config
    batch = text.lengths_B.shape[0]
    on_hidden = guided and guidance_layer < 0
    if on_hidden and config.depth + guidance_layer < 0:
        raise UserError(
            f'guidance layer {guidance_layer} does not exist; the model has {config.depth} layers'
        )

    if economy.unguided_scales > len(schedule):
        raise UserError(
            f'unguided_scales is {economy.unguided_scales}; the picture has {len(schedule)} scales'
        )

    def apply(method, *args):
        return model.apply(variables, *args, method=method)

    if guided:
        text = _with_unconditional(apply, text, negative)
    condition = apply(Transformer.encode_text, *text)
    text_keys_values = apply(Transformer.text_keys_values, condition.memory_BTD)
    # Guidance on hidden states leaves both halves equal; the head then reads the first alone.
    head_condition = condition
    if not guided or on_hidden:
        head_condition = jax.tree.map(lambda x: x[:batch], condition)
    rows = condition.lengths_B.shape[0]
    cache = KeyValueCache.empty(config, schedule, rows, economy.cache == 'int8')
    grids = schedule.code_grids(config.spatial_patchify)
    total = jnp.zeros((batch, *grids[-1], config.bits), jnp.float32)
    all_bits, all_logits = [], []
    for scale, grid in enumerate(grids):
        guidance = controls.guidance_K[scale]
        if scale == len(grids) - economy.unguided_scales:
            # Nothing reads the unconditional half any more; no such scale has another guided one
            # behind it, which would miss its keys.
            guided = on_hidden = False
            condition, head_condition = (
                jax.tree.map(lambda x: x[:batch], each) for each in (condition, head_condition)
            )
            text_keys_values = jax.tree.map(lambda x: x[:, :batch], text_keys_values)
        tokens = None
        if scale:
            tokens = flatten_tokens(next_input(total, grid), config.spatial_patchify)
            if guided:
                tokens = jnp.concatenate([tokens, tokens])
        x_BLD = apply(Transformer.embed_scale, condition, tokens, scale)
        hidden = None
        if on_hidden:
            hidden = HiddenGuidance(config.depth + guidance_layer, guidance)
        x_BLD, cache = apply(
            Transformer.generate_scale,
            x_BLD,
            condition,
            text_keys_values,
            cache,
            schedule,
            scale,
            hidden,
        )
        logits = apply(
            Transformer.logits, x_BLD[: head_condition.lengths_B.shape[0]], head_condition
        )
        logits = logits / controls.temperature_K[scale]
        if guided and not on_hidden:
            conditional, unconditional = jnp.split(logits, 2)
            logits = guidance * conditional + (1 - guidance) * unconditional
        if keep_logits:
            all_logits.append(logits)
        scale_keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, scale)
        bits = sample_bits(scale_keys, keep_likely(logits, top_k, top_p))
        bits = bits.reshape(batch, *schedule.grids[scale], config.token_bits)
        if config.spatial_patchify:
            bits = unfold(bits)
        all_bits.append(bits)
        if forced_bits is not None:
            bits = forced_bits[scale]
        total = accumulate(total, codes_from_bits(bits))
    return Drawn(tuple(all_bits), total, tuple(all_logits))


def _with_unconditional(apply, text: Text, negative: Text | None) -> Text:
    """The batch doubled: conditional half first, then the negative or learned text."""
    if negative is None:
        negative = Text(apply(Transformer.unconditional_text, text.features_BTE), text.lengths_B)
    return Text(*(jnp.concatenate(pair) for pair in zip(text, negative, strict=True)))


def to_uint8(pixels_BYX3: jax.Array) -> jax.Array:
    """Decoder output to 8-bit grey levels: clamped to [-1, 1], then truncated as released."""
    clamped = jnp.clip(pixels_BYX3, -1, 1)
    return ((clamped + 1) / 2 * 255).astype(jnp.uint8)


@functools.partial(
    jax.jit,
    static_argnames=(
        'model',
        'autoencoder',
        'schedule',
        'guided',
        'guidance_layer',
        'top_k',
        'top_p',
        'economy',
    ),
)
def draw_pictures(
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
    economy: Economy = Economy(),
) -> jax.Array:
    """Text features to uint8 pictures (B, Y, X, 3) in one compiled call; see `draw_bits`."""
    drawn = draw_bits(
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
        economy=economy,
    )
    return to_uint8(decode(autoencoder, autoencoder_variables, drawn.total_Bhwd))
