"""Tells by numbers whether a transformer and a tokenizer belong together, without a record of it.

The tokenizer's bits of a few embedded images go through the transformer as in training, without a
caption. A transformer predicts the bits of its own tokenizer better than chance, which is ln 2 nats
per bit; those of another tokenizer of the same d it cannot predict.
"""

import math
import os
from collections.abc import Iterator
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import pixels_per_token, required
from infinity_jax.errors import UserError
from infinity_jax.images import from_uint8
from infinity_jax.scales import STRIDE, ScaleSchedule
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tools.evaluation.tokenizer_images import emoji_images
from infinity_jax.training.transformer.loss import bit_loss
from infinity_jax.training.transformer.self_correction import correct
from infinity_jax.transformer.model import Transformer
from infinity_jax.weights.model_folder import load_model

IMAGES = 4
MAX_TOKENS = 521  # of an image: the scales of 256², which those of larger images begin with
TEXT_TOKENS = 8  # rows of the unconditional text
CHANCE = math.log(2)  # nats per bit, of a guess
MARGIN = 0.05  # nats per bit below chance that a pair needs


class PairLoss(NamedTuple):
    """Loss in nats per bit, over all tokens and by scale."""

    loss: float
    per_scale: tuple[float, ...]
    schedule: ScaleSchedule

    @property
    def belongs(self) -> bool:
        """Whether the transformer predicts the tokenizer's bits better than chance."""
        return self.loss < CHANCE - MARGIN

    def lines(self) -> Iterator[str]:
        """The figures as text, and a verdict."""
        yield f'{"grid":>10}{"loss":>10}   nats per bit; chance is {CHANCE:.4f}'
        for (h, w), loss in zip(self.schedule.grids, self.per_scale, strict=True):
            yield f'{f"{h} x {w}":>10}{loss:>10.4f}'
        yield f'{"all":>10}{self.loss:>10.4f}'
        if self.belongs:
            yield 'transformer and tokenizer belong together'


def pair_loss(folder: str | os.PathLike[str], count: int = IMAGES) -> PairLoss:
    """The loss of a folder's transformer on the bits of its tokenizer.

    Args:
      folder: a model folder; its text encoder is not read.
      count: number of embedded images.

    Raises:
      UserError: a part is missing, or no schedule is known for its tokens.
    """
    loaded = load_model(folder, parts=('transformer', 'tokenizer'), verify=False)
    config = required(loaded.configs.transformer, 'transformer')
    tokenizer = required(loaded.configs.tokenizer, 'tokenizer')
    stride = pixels_per_token(config, tokenizer)
    schedule = loaded.configs.schedule
    if schedule is None and stride == STRIDE:
        schedule = ScaleSchedule.for_image(1.0, '1M')
    schedule = required(schedule, 'schedule')
    # No scale depends on a later one.
    scales = max(1, sum(end <= MAX_TOKENS for _, end in schedule.spans))
    first = ScaleSchedule(schedule.grids[:scales], schedule.full_grid)
    height, width = schedule.image_size(stride)
    images = emoji_images('all', count, max(height, width))
    pixels = np.stack([images.read(number) for number in range(count)])[:, :height, :width]
    model, autoencoder = Transformer(config), Autoencoder(tokenizer)

    @jax.jit
    def run(transformer, encoder, pixels_BYX3):
        def encode(image_YX3):
            variables = {'params': {'encoder': encoder}}
            image_BYX3 = from_uint8(image_YX3)[None]
            return cast(
                jax.Array, autoencoder.apply(variables, image_BYX3, method=Autoencoder.encode)
            )[0]

        features = jax.lax.map(encode, pixels_BYX3)  # one by one: large images need much memory
        patchify = config.spatial_patchify
        inputs, targets = correct(features, schedule, lambda _, bits: bits, patchify=patchify)
        length = min(TEXT_TOKENS, config.text_length)
        text = jnp.zeros((count, length, config.text_channels))
        logits = model.apply(
            {'params': transformer},
            text,
            jnp.full(count, length),
            inputs[:, : first.num_tokens - 1],
            first,
            drop_condition_B=jnp.ones(count, bool),
        )
        targets = targets[:, : first.num_tokens]
        loss, parts = bit_loss(cast(jax.Array, logits), targets, first, reweight=False)
        return loss, parts.loss

    params = required(loaded.tokenizer_params, 'tokenizer')['encoder']
    loss, per_scale = run(required(loaded.transformer_params, 'transformer'), params, pixels)
    return PairLoss(float(loss), tuple(map(float, per_scale)), first)


def check_pair(folder: str | os.PathLike[str]) -> None:
    """Prints the losses of `pair_loss` by scale.

    Raises:
      UserError: the two parts do not belong together.
    """
    result = pair_loss(folder)
    print(*result.lines(), sep='\n')
    if not result.belongs:
        raise UserError(
            f'{folder}: the transformer predicts the bits of this tokenizer with '
            f'{result.loss:.3f} nats per bit, by chance it would be {CHANCE:.3f}: these two do not '
            'belong together, or the transformer is hardly trained; name the tokenizer that it was '
            'trained with'
        )
