"""The bitwise autoregressive transformer: training forward and one generation step.

Both run the same blocks, stacked and scanned over the layers. Training attends within the whole
sequence; generation runs one scale at a time against a cache.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import constrain
from infinity_jax.transformer.attention_ops import (
    attend_scale,
    prefix_attention,
    query_groups,
    training_length,
)
from infinity_jax.transformer.block import Block, modulate
from infinity_jax.transformer.conditioning import Conditioning, TextConditioner
from infinity_jax.transformer.kv_cache import KeyValueCache
from infinity_jax.transformer.layer_loop import unrolled
from infinity_jax.transformer.layers import linear
from infinity_jax.transformer.remat import remat
from infinity_jax.transformer.rope import rope_table
from infinity_jax.transformer.tpu import channels_last


class Trace(NamedTuple):
    """Intermediate values of one forward pass, for parity checks.

    Attributes:
      pooled_BD, context_BTD: of `Conditioning`.
      blocks: (depth, B, L, D), the residual stream after each block.
      logits: (B, L, d, 2), or (B, L, 2^d) of an index classifier.
    """

    pooled_BD: jax.Array
    context_BTD: jax.Array
    blocks: jax.Array
    logits: jax.Array


class HiddenGuidance(NamedTuple):
    """Classifier-free guidance on the hidden states after a layer.

    Attributes:
      layer: zero-based.
      guidance: strength; 1: none.
    """

    layer: int
    guidance: jax.Array


class Transformer(nn.Module):
    """Predicts the bits of each scale from text and coarser scales (paper 3.3).

    Attributes:
      config: sizes and the dtype of the blocks' products.
      implementation: of attention: 'auto', 'xla', 'cudnn' or 'splash', see
        `attention_choice.choose`.
      remat: name of the policy that decides what the gradient recomputes, see `remat.POLICIES`.
      layers: whether the training program lists its layers, see `layer_loop.unrolled`. Generation
        always loops over them.
    """

    config: TransformerConfig
    implementation: str = 'auto'
    remat: str = 'none'
    layers: str = 'scanned'

    def setup(self):
        config = self.config
        std = (1 / (3 * config.width)) ** 0.5
        normal = nn.initializers.normal(std)
        self.conditioner = TextConditioner(config)
        nn.share_scope(self, self.conditioner)
        self.first_token = self.param('first_token', normal, (config.width,))
        self.level_embed = self.param('level_embed', normal, (config.max_scales, config.width))
        self.word_embed = linear(config.width, ('bits', 'embed'), std, jnp.float32)
        self.blocks = Block(config, self.implementation)
        self.head_modulation = linear(2 * config.width, ('embed', 'mlp'), std * 1e-3, jnp.float32)
        self.head = linear(config.head_outputs, ('embed', None), std * 0.02, jnp.float32)

    def _scan(self, body, carry, per_layer=None, unrolled: bool = False):
        """Runs `body(block, carry, per_layer[i])` over all layers; returns carry and outputs."""
        return nn.scan(
            body,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            length=self.config.depth,
            unroll=self.config.depth if unrolled else 1,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )(self.blocks, carry, per_layer)

    def encode_text(
        self, text_BTE: jax.Array, lengths_B: jax.Array, tiled: bool = False
    ) -> Conditioning:
        """Text features (B, T, E), padded to a common length, to `Conditioning`.

        `tiled` as in `Linear`, for generation.
        """
        return self.conditioner(text_BTE, lengths_B, tiled)

    def unconditional_text(self, text_BTE: jax.Array) -> jax.Array:
        """Learned features (B, T, E) that replace the text for classifier-free guidance."""
        return self.conditioner.unconditional(text_BTE)

    def embed(self, conditioning: Conditioning, inputs_BLd: jax.Array, schedule: ScaleSchedule):
        """The first token and the word embeddings of later scales, (B, L, D) float32."""
        check_schedule(self.config, schedule)
        first = (conditioning.pooled_BD + self.first_token[None])[:, None]
        x_BLD = jnp.concatenate([first, self.word_embed(inputs_BLd)], axis=1)
        return x_BLD + self.level_embed[schedule.scale_of_token][None]

    def embed_scale(self, conditioning: Conditioning, input_BLd: jax.Array | None, scale: int):
        """Tokens (B, h·w, D) of one scale; the first scale has no input but the conditioning."""
        if input_BLd is None:
            x_BLD = (conditioning.pooled_BD + self.first_token[None])[:, None]
        else:
            x_BLD = self.word_embed(input_BLd, tiled=True)
        return x_BLD + self.level_embed[scale][None, None]

    def logits(
        self, x_BLD: jax.Array, conditioning: Conditioning, tiled: bool = False
    ) -> jax.Array:
        """Final hidden states to float32 logits (B, L, d, 2), for each bit of 0 and of 1.

        Those of an index classifier are (B, L, 2^d), see `index_classifier`. `tiled` as in
        `Linear`, for generation.
        """
        modulation = self.head_modulation(nn.silu(conditioning.pooled_BD), tiled=tiled)
        scale, shift = jnp.split(modulation, 2, axis=-1)
        logits = self.head(modulate(x_BLD, scale, shift), tiled=tiled)
        if self.config.classifier == 'index':
            return logits
        return logits.reshape(*x_BLD.shape[:2], self.config.token_bits, 2)

    def __call__(
        self,
        text_BTE: jax.Array,
        lengths_B: jax.Array,
        inputs_BLd: jax.Array,
        schedule: ScaleSchedule,
        *,
        drop_condition_B: jax.Array | None = None,
        kept: jax.Array | None = None,
    ) -> jax.Array:
        """Training forward over all scales at once.

        Args:
          text_BTE: text features, padded.
          lengths_B: number of real tokens of each text, at least 1.
          inputs_BLd: inputs of all scales but the first, (B, L − 1, d) from self-correction.
          schedule: the token grids.
          drop_condition_B: bool; where True, the learned unconditional text replaces the prompt.
          kept: factors of stochastic depth, (B, layers, 2), from `layers.sample_kept`.

        Returns:
          Logits (B, L, d, 2), float32; of an index classifier (B, L, 2^d).
        """
        return self.trace(
            text_BTE,
            lengths_B,
            inputs_BLd,
            schedule,
            drop_condition_B=drop_condition_B,
            kept=kept,
            keep_blocks=False,
        ).logits

    def trace(
        self,
        text_BTE,
        lengths_B,
        inputs_BLd,
        schedule: ScaleSchedule,
        *,
        drop_condition_B=None,
        kept=None,
        keep_blocks: bool = True,
    ) -> Trace:
        """`__call__` with intermediate values; `keep_blocks` stacks every block's output."""
        if drop_condition_B is not None:
            dropped = drop_condition_B[:, None, None]
            text_BTE = jnp.where(dropped, self.unconditional_text(text_BTE), text_BTE)
        conditioning = self.encode_text(text_BTE, lengths_B)
        groups, length = query_groups(schedule), schedule.num_tokens
        padding = training_length(length, self.config, self.implementation) - length
        rope = np.pad(rope_table(schedule, self.config.head_dim), ((0, 0), (0, padding), (0, 0)))
        x_BLD = self.embed(conditioning, inputs_BLd, schedule)
        x_BLD = constrain(jnp.pad(x_BLD, ((0, 0), (0, padding), (0, 0))), 'batch', 'length', None)

        def layer(block: Block, x_BLD, keep_2B):
            x_BLD, _ = block(
                x_BLD,
                conditioning.modulation_B6D,
                rope,
                block.text_keys_values(conditioning.context_BTD),
                conditioning.lengths_B,
                lambda q, k, v: prefix_attention(q, k, v, groups, self.implementation),
                keep_2B,
            )
            return x_BLD, x_BLD[:, :length] if keep_blocks else None

        keep = None if kept is None else kept.transpose(1, 2, 0)
        listed = unrolled(self.layers, self.config.depth)
        x_BLD, blocks = self._scan(remat(layer, self.remat, listed), x_BLD, keep, listed)
        logits = self.logits(x_BLD, conditioning)[:, :length]
        return Trace(conditioning.pooled_BD, conditioning.context_BTD, blocks, logits)

    def text_keys_values(self, context_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cross-attention keys and values of all layers, (layers, B, T, N, H), once per prompt."""
        return self._scan(lambda block, _, __: (None, block.text_keys_values(context_BTD)), None)[1]

    def generate_scale(
        self,
        x_BLD: jax.Array,
        conditioning: Conditioning,
        text_keys_values: tuple[jax.Array, jax.Array],
        cache: KeyValueCache,
        schedule: ScaleSchedule,
        scale: int,
        hidden_guidance: HiddenGuidance | None = None,
    ) -> tuple[jax.Array, KeyValueCache]:
        """Runs one scale's tokens through all layers against the cache.

        Args:
          x_BLD: `embed_scale` of this scale. Under guidance the batch holds the conditional half,
            then the unconditional one; with fewer rows than the cache, the first of them.
          scale: zero-based, static.
          hidden_guidance: mixes both halves after one layer, which makes them equal.

        Returns:
          The hidden states (B, h·w, D), and the cache with this scale's keys and values. Those of
          the last scale are not stored, because nothing reads them.
        """
        check_schedule(self.config, schedule)
        start, end = schedule.spans[scale]
        rope = rope_table(schedule, self.config.head_dim)[:, start:end]
        last = scale == len(schedule) - 1

        def layer(block: Block, carry, per_layer):
            x_BLD, cache, index = carry
            x_BLD = channels_last(x_BLD)

            def attend_to_prefix(q, k, v):
                nonlocal cache
                attended, cache = attend_scale(
                    q, k, v, cache, index, start, last=last, implementation=self.implementation
                )
                return attended

            x_BLD, _ = block(
                x_BLD,
                conditioning.modulation_B6D,
                rope,
                per_layer,
                conditioning.lengths_B,
                attend_to_prefix,
                generating=True,
            )
            if hidden_guidance is not None:
                mixed = mix_halves(x_BLD, hidden_guidance.guidance)
                x_BLD = jnp.where(index == hidden_guidance.layer, mixed, x_BLD)
            return (x_BLD, cache, index + 1), None

        carry = (x_BLD, cache, jnp.int32(0))
        (x_BLD, cache, _), _ = self._scan(layer, carry, text_keys_values)
        return x_BLD, cache


def check_schedule(config: TransformerConfig, schedule: ScaleSchedule) -> None:
    """Raises `UserError` unless the schedule starts with one token and fits `max_scales`."""
    if schedule.grids[0] != (1, 1):
        raise UserError(
            f'the scale schedule starts at {schedule.grids[0]}; the text gives one token, so it '
            'must start at (1, 1)'
        )
    # Indexing past the table's end would silently read its last row.
    if len(schedule) > config.max_scales:
        raise UserError(
            f'the schedule has {len(schedule)} scales, transformer.max_scales is '
            f'{config.max_scales}: raise it or shorten the schedule'
        )


def mix_halves(x_BLD: jax.Array, guidance: jax.Array) -> jax.Array:
    """g·cond + (1 − g)·uncond in both halves of the batch; unchanged at g = 1, as released."""
    conditional, unconditional = jnp.split(x_BLD, 2)
    mixed = guidance * conditional + (1 - guidance) * unconditional
    return jnp.where(guidance == 1, x_BLD, jnp.concatenate([mixed, mixed]))


def init_transformer(model: Transformer, key: jax.Array, schedule: ScaleSchedule) -> Any:
    """Initialises boxed variables; the schedule only gives shapes to trace with."""
    config = model.config
    return model.init(
        key,
        jnp.zeros((1, 1, config.text_channels)),
        jnp.ones((1,), jnp.int32),
        jnp.zeros((1, schedule.num_tokens - 1, config.token_bits)),
        schedule,
    )


@functools.cache  # tracing takes as long as reading a small model
def transformer_shapes(config: TransformerConfig, boxed: bool = False) -> dict[str, Any]:
    """The transformer's parameter tree as `ShapeDtypeStruct`s; boxed ones have logical axes."""
    schedule = ScaleSchedule.free(((1, 1), (1, 1)))
    text = jax.ShapeDtypeStruct((1, 1, config.text_channels), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    inputs = jax.ShapeDtypeStruct((1, 1, config.token_bits), jnp.float32)

    def init(text, lengths, inputs):
        return Transformer(config).init(jax.random.key(0), text, lengths, inputs, schedule)

    shapes = jax.eval_shape(init, text, lengths, inputs)['params']
    return shapes if boxed else nn.unbox(shapes)
