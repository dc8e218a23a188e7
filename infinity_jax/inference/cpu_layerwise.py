"""Generation layer by layer on a CPU: the bits of `generate.generate_bits`, from unstacked weights.

The host calls one small program per layer and scale, which costs it about 0.1 ms per call. See
`layer_step` for what that saves and docs/notebook/speed.md for how much.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TransformerConfig
from infinity_jax.inference.generate import GeneratedBits
from infinity_jax.inference.sampling import GenerationSettings
from infinity_jax.inference.scale_steps import (
    GenerationInputs,
    add_bits,
    conditional_half,
    embed_prompts,
    embed_scale_inputs,
    for_images,
    no_codes,
    sample_scale_bits,
)
from infinity_jax.inference.stepwise import OnScale
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.block import Block
from infinity_jax.transformer.conditioning import Conditioning
from infinity_jax.transformer.layers import HIGHEST
from infinity_jax.transformer.model import Transformer, check_schedule, mix_halves
from infinity_jax.transformer.rope import rope_table

STATIC = ('model', 'settings')


class LayerWeights(NamedTuple):
    """A transformer's parameters, one tree per layer, and the rest.

    Attributes:
      rest: variables of all that is not a block.
      layers: parameters of each block.
    """

    rest: Any
    layers: tuple[Any, ...]

    @classmethod
    def of(cls, params: Any, depth: int) -> 'LayerWeights':
        """Takes the stacked layers apart; `params` itself is left as it is."""
        rest = {name: value for name, value in params.items() if name != 'blocks'}
        return cls({'params': rest}, unstack(params['blocks'], depth))


class LayerwiseState(NamedTuple):
    """Generation between two scales.

    Attributes:
      conditioning: of the rows of the scale before, or of the first.
      x_BLD: tokens of the next scale before the first layer, or of this one after the last; None
        after the last scale.
      total_Bhwd: codes accumulated so far.
    """

    conditioning: Conditioning
    x_BLD: jax.Array | None
    total_Bhwd: jax.Array


@functools.partial(jax.jit, static_argnames=STATIC)
def _begin(
    model: Transformer, variables: Any, inputs: GenerationInputs, settings: GenerationSettings
) -> LayerwiseState:
    """The conditioning, no codes yet, and the first scale's tokens."""
    images, guided = inputs.keys_B.shape[0], settings.guided_at(0)
    conditioning = embed_prompts(model, variables, inputs, guided)
    conditioning = for_images(conditioning, images, guided)
    total = no_codes(model, settings.schedule, images)
    x_BLD = embed_scale_inputs(model, variables, conditioning, total, settings, 0)
    return LayerwiseState(conditioning, x_BLD, total)


@functools.partial(jax.jit, static_argnames=(*STATIC, 'scale', 'keep_logits'))
def _advance(
    model: Transformer,
    variables: Any,
    state: LayerwiseState,
    inputs: GenerationInputs,
    forced_Bhwd: jax.Array | None,
    settings: GenerationSettings,
    scale: int,
    keep_logits: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Bits of one scale, the codes with them, the next scale's tokens, and logits if kept."""
    conditioning = state.conditioning
    assert state.x_BLD is not None
    bits, logits = sample_scale_bits(
        model, variables, conditioning, state.x_BLD, state.total_Bhwd, inputs, settings, scale
    )
    total = add_bits(state.total_Bhwd, bits if forced_Bhwd is None else forced_Bhwd)
    following = None
    if scale + 1 < len(settings.schedule):
        if settings.guided_at(scale) and not settings.guided_at(scale + 1):
            conditioning = conditional_half(conditioning)
        following = embed_scale_inputs(model, variables, conditioning, total, settings, scale + 1)
    return bits, total, following, logits if keep_logits else None


_mix = jax.jit(mix_halves)
_conditional_half = jax.jit(conditional_half)


def generate_bits_layerwise(
    model: Transformer,
    weights: LayerWeights,
    inputs: GenerationInputs,
    settings: GenerationSettings,
    *,
    forced_bits: Sequence[jax.Array] | None = None,
    keep_logits: bool = False,
    on_scale: OnScale = lambda scale, total_Bhwd: None,
) -> GeneratedBits:
    """`generate.generate_bits`, called by the host; the arguments are those there.

    `on_scale` is called after each scale, see `stepwise.generate_by_scale`.
    """
    config, schedule = model.config, settings.schedule
    check_schedule(config, schedule)
    guided = settings.guided_at(0)
    conditioning, x_BLD, total = _begin(model, weights.rest, inputs, settings)
    texts = [layer_text(config, layer, conditioning.context_BTD) for layer in weights.layers]
    prefixes = [None] * config.depth
    all_bits, all_logits = [], []
    for scale in range(len(schedule)):
        if guided and not settings.guided_at(scale):
            # No guided scale follows an unguided one: it would miss keys.
            guided = False
            conditioning, texts, prefixes = _conditional_half((conditioning, texts, prefixes))
        guided_layer = settings.hidden_layer(config, scale)
        for i, layer in enumerate(weights.layers):
            x_BLD, prefixes[i] = layer_step(
                config, layer, x_BLD, conditioning, texts[i], prefixes[i], schedule, scale
            )
            if i == guided_layer:
                x_BLD = _mix(x_BLD, inputs.numbers.guidance_K[scale])
        bits, total, x_BLD, logits = _advance(
            model,
            weights.rest,
            LayerwiseState(conditioning, x_BLD, total),
            inputs,
            None if forced_bits is None else forced_bits[scale],
            settings,
            scale,
            keep_logits,
        )
        all_bits.append(bits)
        all_logits += [logits] if keep_logits else []
        on_scale(scale, total)
    return GeneratedBits(tuple(all_bits), total, tuple(all_logits))


KeysValues = tuple[jax.Array, jax.Array]


def unstack(blocks: Any, depth: int) -> tuple[Any, ...]:
    """The stacked parameters of all blocks as one tree per block.

    On a CPU, a jax array made of a numpy view is that view: no weight is copied, except small ones
    whose address is no multiple of 64 bytes.
    """
    views = jax.tree.map(np.asarray, blocks)
    return tuple(
        jax.tree.map(lambda view, i=i: jax.device_put(view[i]), views) for i in range(depth)
    )


@functools.partial(jax.jit, static_argnames='config')
def layer_text(config: TransformerConfig, params: Any, context_BTD: jax.Array) -> KeysValues:
    """One layer's cross-attention keys and values of the text, heads first: (P, N, T, H)."""
    pair = Block(config).apply({'params': params}, context_BTD, method=Block.text_keys_values)
    keys, values = cast(KeysValues, pair)
    return keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3)


@functools.partial(
    jax.jit, static_argnames=('config', 'schedule', 'scale'), donate_argnames='x_BLD'
)
def layer_step(
    config: TransformerConfig,
    params: Any,
    x_BLD: jax.Array,
    conditioning: Conditioning,
    text_keys_values: KeysValues,
    prefix: KeysValues | None,
    schedule: ScaleSchedule,
    scale: int,
) -> tuple[jax.Array, KeysValues | None]:
    """Runs one scale's tokens through one layer.

    Args:
      params: of this layer alone.
      x_BLD: tokens of this scale, float32.
      text_keys_values: `layer_text` of the same layer.
      prefix: keys and values (B, N, S, H) of the scales before, heads first, so that no product
        has to transpose them again; None at the first scale.
      schedule, scale: static; they give the positions of the tokens.

    Returns:
      The new x and the prefix of the next scale; None after the last scale. The products read old
      and new keys from one array: that array is the cache.
    """
    start, end = schedule.spans[scale]
    joined: KeysValues | None = None

    def attend_to_prefix(q_BLNH, k_BLNH, v_BLNH):
        nonlocal joined
        k, v = (each.transpose(0, 2, 1, 3) for each in (k_BLNH, v_BLNH))
        if prefix is not None:
            k, v = (jnp.concatenate(pair, axis=2) for pair in zip(prefix, (k, v), strict=True))
        joined = k, v
        return attend_heads_first(q_BLNH, k, v)

    x_BLD, _ = Block(config).apply(
        {'params': params},
        x_BLD,
        conditioning.modulation_B6D,
        rope_table(schedule, config.head_dim)[:, start:end],
        text_keys_values,
        conditioning.lengths_B,
        attend_to_prefix,
        attend_text=attend_heads_first,
    )
    return x_BLD, None if end == schedule.num_tokens else joined


def attend_heads_first(
    q_BLNH: jax.Array,
    k_BNSH: jax.Array,
    v_BNSH: jax.Array,
    *,
    scale: float = 1.0,
    key_lengths_B: jax.Array | None = None,
) -> jax.Array:
    """`attention.attend`, (B, L, N, H), for keys and values that no product has to transpose."""
    precision = HIGHEST if q_BLNH.dtype == jnp.float32 else None
    q_BNLH = q_BLNH.transpose(0, 2, 1, 3)
    scores = scale * jnp.einsum(
        'bnlh,bnsh->bnls', q_BNLH, k_BNSH, precision=precision, preferred_element_type=jnp.float32
    )
    if key_lengths_B is not None:
        padding_BS = jnp.arange(k_BNSH.shape[2])[None] >= key_lengths_B[:, None]
        scores = jnp.where(padding_BS[:, None, None], -jnp.inf, scores)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BNSH.dtype)
    attended = jnp.einsum('bnls,bnsh->bnlh', weights, v_BNSH, precision=precision)
    return attended.transpose(0, 2, 1, 3)
