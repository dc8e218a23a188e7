"""The steps of drawing that stand around the transformer's layers, as pure functions.

One program runs them all (`generate`), or several do (`draw_layerwise`): both draw the same bits.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infinity_jax.config import QuantizationConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.inference.sampling import SamplingConfig, keep_likely, sample_bits
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.quantizer import (
    accumulate,
    codes_from_bits,
    depth_to_space,
    flatten_tokens,
    next_input,
)
from infinity_jax.transformer.conditioning import Conditioning
from infinity_jax.transformer.model import HiddenGuidance, Transformer


class Text(NamedTuple):
    """Encoded prompts: features (P, T, E), padded, and their true lengths (P,).

    Every prompt is drawn equally often: of B images, B/P consecutive ones share a prompt.
    """

    features_BTE: jax.Array
    lengths_B: jax.Array


class Controls(NamedTuple):
    """Traced sampling numbers, one per scale: changing them does not recompile."""

    guidance_K: jax.Array
    temperature_K: jax.Array


@dataclasses.dataclass(frozen=True)
class Mode:
    """What is static in drawing: another mode is another program.

    Attributes:
      guided: whether the unconditional half runs at all.
      guidance_layer: 0 guides logits, −n hidden states after zero-based block depth − n.
      top_k, top_p: see `SamplingConfig`.
      quantization: of its cache, and which scales run unguided.
    """

    guided: bool = True
    guidance_layer: int = 0
    top_k: int = 0
    top_p: float = 0.97
    quantization: QuantizationConfig = QuantizationConfig()

    def at_scale(self, scale: int, scales: int) -> 'Mode':
        """The mode of one scale of an image: guidance stops before the unguided ones.

        Raises:
          UserError: more scales are unguided than there are.
        """
        unguided = self.quantization.unguided_scales
        if unguided > scales:
            raise UserError(f'unguided_scales is {unguided}; the image has {scales} scales')
        return dataclasses.replace(self, guided=self.guided and scale < scales - unguided)

    @property
    def on_hidden(self) -> bool:
        return self.guided and self.guidance_layer < 0

    def hidden_layer(self, config: TransformerConfig) -> int:
        """The zero-based block after which hidden states are guided.

        Raises:
          UserError: the model has no such block.
        """
        if config.depth + self.guidance_layer < 0:
            raise UserError(
                f'guidance layer {self.guidance_layer} does not exist; the model has '
                f'{config.depth} layers'
            )
        return config.depth + self.guidance_layer


def controls(sampling: SamplingConfig, schedule: ScaleSchedule) -> Controls:
    """The traced part of a sampling configuration."""
    scales = len(schedule)
    return Controls(
        jnp.array(sampling.per_scale('guidance', scales), jnp.float32),
        jnp.array(sampling.per_scale('temperature', scales), jnp.float32),
    )


def embed_prompts(
    model: Transformer, variables: Any, text: Text, negative: Text | None, guided: bool
) -> Conditioning:
    """The condition of P prompts; under guidance that of 2P rows, the conditional half first.

    Args:
      negative: replaces the learned unconditional text; padded to the same length as `text`.
    """
    if guided:
        if negative is None:
            features = model.apply(
                variables, text.features_BTE, method=Transformer.unconditional_text
            )
            negative = Text(features, text.lengths_B)
        text = Text(*(jnp.concatenate(pair) for pair in zip(text, negative, strict=True)))
    return model.apply(variables, *text, tiled=True, method=Transformer.encode_text)


def for_images(condition: Conditioning, images: int, guided: bool) -> Conditioning:
    """The condition with pooled text and modulation repeated for the images of each prompt.

    What attends to the text keeps one row a prompt: cross-attention joins the images' tokens.
    """
    repeats = images * (2 if guided else 1) // condition.lengths_B.shape[0]
    return condition._replace(
        pooled_BD=jnp.repeat(condition.pooled_BD, repeats, axis=0),
        modulation_B6D=jnp.repeat(condition.modulation_B6D, repeats, axis=0),
    )


def conditional_half(tree: Any, rows_axis: int = 0) -> Any:
    """Of arrays whose batch is doubled for guidance, the first half: what unguided scales run."""

    def half(x: jax.Array) -> jax.Array:
        return jax.lax.slice_in_dim(x, 0, x.shape[rows_axis] // 2, axis=rows_axis)

    return jax.tree.map(half, tree)


def no_codes(model: Transformer, schedule: ScaleSchedule, images: int) -> jax.Array:
    """The accumulated codes (B, h, w, d) before the first scale."""
    grid = schedule.code_grids(model.config.spatial_patchify)[-1]
    return jnp.zeros((images, *grid, model.config.bits), jnp.float32)


def embed_scale_inputs(
    model: Transformer,
    variables: Any,
    condition: Conditioning,
    total_Bhwd: jax.Array,
    schedule: ScaleSchedule,
    scale: int,
    guided: bool,
) -> jax.Array:
    """Tokens (B or 2B, h·w, D) of one scale, from the codes accumulated so far."""
    tokens = None
    if scale:
        patchify = model.config.spatial_patchify
        grid = schedule.code_grids(patchify)[scale]
        tokens = flatten_tokens(next_input(total_Bhwd, grid), patchify)
        if guided:
            tokens = jnp.concatenate([tokens, tokens])
    return model.apply(variables, condition, tokens, scale, method=Transformer.embed_scale)


def hidden_guidance(
    model: Transformer, controls: Controls, scale: int, mode: Mode
) -> HiddenGuidance | None:
    """How the layers mix the halves of a scale's batch; None where logits are guided, if any."""
    if not mode.on_hidden:
        return None
    return HiddenGuidance(mode.hidden_layer(model.config), controls.guidance_K[scale])


def sample_scale_bits(
    model: Transformer,
    variables: Any,
    condition: Conditioning,
    x_BLD: jax.Array,
    keys_B: jax.Array,
    controls: Controls,
    schedule: ScaleSchedule,
    scale: int,
    mode: Mode,
) -> tuple[jax.Array, jax.Array]:
    """Bits (B, h, w, d) of one scale on the code grid, and the logits (B, h·w, d, 2) behind them.

    Args:
      x_BLD: hidden states after the last layer.
      keys_B: one random key an image.
    """
    batch = keys_B.shape[0]
    guide_logits = mode.guided and not mode.on_hidden
    if not guide_logits:  # guidance on hidden states leaves both halves equal: read the first
        condition = condition._replace(pooled_BD=condition.pooled_BD[:batch])
        x_BLD = x_BLD[:batch]
    logits = model.apply(variables, x_BLD, condition, tiled=True, method=Transformer.logits)
    logits = logits / controls.temperature_K[scale]
    if guide_logits:
        guidance = controls.guidance_K[scale]
        conditional, unconditional = jnp.split(logits, 2)
        logits = guidance * conditional + (1 - guidance) * unconditional
    scale_keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, scale)
    bits = sample_bits(scale_keys, keep_likely(logits, mode.top_k, mode.top_p))
    bits = bits.reshape(batch, *schedule.grids[scale], model.config.token_bits)
    return (depth_to_space(bits) if model.config.spatial_patchify else bits), logits


def add_bits(total_Bhwd: jax.Array, bits_Bhwd: jax.Array) -> jax.Array:
    """The accumulated codes with those of one more scale."""
    return accumulate(total_Bhwd, codes_from_bits(bits_Bhwd))
