"""Drawing layer by layer on a CPU: the bits of `generate.draw_bits`, from unstacked weights.

The host calls one small program a layer and scale, which costs it about 0.1 ms a call. See
`transformer.layer_step` for what that saves and docs/speed.md for how much.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from infinity_jax.drawing.draw_steps import (
    Controls,
    Mode,
    Text,
    add_bits,
    conditional_half,
    enter_scale,
    for_pictures,
    leave_scale,
    no_codes,
    read_text,
)
from infinity_jax.generate import Drawn
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.condition import Condition
from infinity_jax.transformer.layer_step import layer_step, layer_text, unstack
from infinity_jax.transformer.model import Transformer, check_schedule, mix_halves

STATIC = ('model', 'schedule', 'mode')


class LayerWeights(NamedTuple):
    """A transformer's parameters, one tree a layer, and the rest.

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


@functools.partial(jax.jit, static_argnames=STATIC)
def _begin(
    model: Transformer,
    variables: Any,
    keys_B: jax.Array,
    text: Text,
    negative: Text | None,
    schedule: ScaleSchedule,
    mode: Mode,
) -> tuple[Condition, jax.Array, jax.Array]:
    """The condition, no codes yet, and the first scale's tokens."""
    condition = read_text(model, variables, text, negative, mode.guided)
    condition = for_pictures(condition, keys_B.shape[0], mode.guided)
    total = no_codes(model, schedule, keys_B.shape[0])
    x_BLD = enter_scale(model, variables, condition, total, schedule, 0, mode.guided)
    return condition, total, x_BLD


@functools.partial(jax.jit, static_argnames=(*STATIC, 'scale', 'keep_logits'))
def _advance(
    model: Transformer,
    variables: Any,
    condition: Condition,
    x_BLD: jax.Array,
    total_Bhwd: jax.Array,
    keys_B: jax.Array,
    controls: Controls,
    forced_Bhwd: jax.Array | None,
    schedule: ScaleSchedule,
    scale: int,
    mode: Mode,
    keep_logits: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Bits of one scale, the codes with them, the next scale's tokens, and logits if kept."""
    now = mode.at_scale(scale, len(schedule))
    bits, logits = leave_scale(
        model, variables, condition, x_BLD, keys_B, controls, schedule, scale, now
    )
    total = add_bits(total_Bhwd, bits if forced_Bhwd is None else forced_Bhwd)
    following = None
    if scale + 1 < len(schedule):
        after = mode.at_scale(scale + 1, len(schedule))
        if now.guided and not after.guided:
            condition = conditional_half(condition)
        following = enter_scale(
            model, variables, condition, total, schedule, scale + 1, after.guided
        )
    return bits, total, following, logits if keep_logits else None


_mix = jax.jit(mix_halves)
_conditional_half = jax.jit(conditional_half)


def draw_bits_layerwise(
    model: Transformer,
    weights: LayerWeights,
    keys_B: jax.Array,
    text: Text,
    controls: Controls,
    schedule: ScaleSchedule,
    *,
    negative: Text | None = None,
    mode: Mode = Mode(),
    forced_bits: Sequence[jax.Array] | None = None,
    keep_logits: bool = False,
) -> Drawn:
    """`generate.draw_bits`, called by the host; the arguments are those there."""
    config = model.config
    check_schedule(config, schedule)
    guided = mode.at_scale(0, len(schedule)).guided
    begin = dataclasses.replace(mode, guided=guided)
    condition, total, x_BLD = _begin(
        model, weights.rest, keys_B, text, negative, schedule=schedule, mode=begin
    )
    texts = [layer_text(config, layer, condition.memory_BTD) for layer in weights.layers]
    prefixes = [None] * config.depth
    all_bits, all_logits = [], []
    for scale in range(len(schedule)):
        now = mode.at_scale(scale, len(schedule))
        if guided and not now.guided:
            # No guided scale comes behind an unguided one: it would miss keys.
            guided = False
            condition, texts, prefixes = _conditional_half((condition, texts, prefixes))
        guided_layer = now.hidden_layer(config) if now.on_hidden else None
        for i, layer in enumerate(weights.layers):
            x_BLD, prefixes[i] = layer_step(
                config, layer, x_BLD, condition, texts[i], prefixes[i], schedule, scale
            )
            if i == guided_layer:
                x_BLD = _mix(x_BLD, controls.guidance_K[scale])
        bits, total, x_BLD, logits = _advance(
            model,
            weights.rest,
            condition,
            x_BLD,
            total,
            keys_B,
            controls,
            None if forced_bits is None else forced_bits[scale],
            schedule,
            scale,
            mode,
            keep_logits,
        )
        all_bits.append(bits)
        all_logits += [logits] if keep_logits else []
    return Drawn(tuple(all_bits), total, tuple(all_logits))
