"""Prompts to text features, with the text encoder on the device or offloaded to the host."""

import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from infinity_jax.config import TransformerConfig, required
from infinity_jax.errors import UserError
from infinity_jax.inference.executables import Executables, call_jitted
from infinity_jax.inference.scale_steps import Text
from infinity_jax.sharding import in_mesh
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.weights.placement import PlacedModel, share_batch

MAX_SHOWN = 20  # unknown characters in a warning
Pair = tuple[Text, Text | None]  # prompts and the negative text, padded to the same length


@functools.partial(jax.jit, static_argnames='encoder')
def encode(encoder: T5Encoder, params: Any, ids_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Padded token ids to text features (B, T, E); compiled once per shape and encoder."""
    return cast(jax.Array, encoder.apply({'params': params}, ids_BT, lengths_B))


def padded_length(config: TransformerConfig, text_length: int | None) -> int:
    """Tokens that prompts are padded to and cut at; by default all that the model reads.

    Raises:
      UserError: more tokens than the model reads, or none.
    """
    length = config.text_length if text_length is None else text_length
    if not 1 <= length <= config.text_length:
        raise UserError(
            f'text_length is {text_length}; wanted 1 to the {config.text_length} tokens that the '
            'model reads'
        )
    return length


class PromptEncoder:
    """The text encoder of a pipeline, compiled once per number of prompts.

    All prompts are padded to one length, so that no prompt, however long, compiles anything. The
    texts' own lengths decide what attends to what: the padding changes no result.
    """

    def __init__(
        self,
        model: PlacedModel,
        text_length: int | None = None,
        executables: Executables | None = None,
    ):
        """Takes the text parts of a model.

        Args:
          model: with its weights in place. An offloaded text encoder stays on the host: each call
            puts it on the device, encodes all its prompts and frees the room again.
          text_length: tokens that prompts are padded to and cut at; None: all that the model
            reads. Fewer are less work: see docs/speed.md.
          executables: the store of compiled programs; None: nothing is stored.

        Raises:
          UserError: more tokens than the model reads, or none.
        """
        config = required(model.configs.transformer, 'transformer')
        self._limit = padded_length(config, text_length)
        self._mesh = model.mesh
        self._executables = executables or Executables()
        self._tokenizer = model.text_tokenizer
        text_config = required(model.configs.text, 'text encoder')
        self._encoder = T5Encoder(text_config, jnp.dtype(model.configs.text_products))
        self._params, self._offload = model.text_params, model.offload_text

    def __call__(self, batches: Iterable[Sequence[str]], negative: str | None) -> Iterable[Pair]:
        """Encodes each batch of prompts when it is requested, or all at once when offloading.

        Args:
          batches: prompts, none empty.
          negative: one text for all images.
        """
        if not self._offload:
            return (self._encode(self._params, batch, negative) for batch in batches)
        params = jax.device_put(self._params)
        try:
            return jax.device_get([self._encode(params, batch, negative) for batch in batches])
        finally:
            jax.tree.map(lambda leaf: leaf.delete(), params)

    def warn_of_losses(self, prompts: Sequence[str]) -> None:
        """Warns in one line about prompts whose end the model will not read.

        Another line warns about characters that the vocabulary lacks: every run of them is read as
        the same unknown token.
        """
        unknown = self._tokenizer.unknown_characters(prompts, self._limit)
        characters = ''.join(dict.fromkeys(''.join(unknown)))
        if characters:
            warnings.warn(
                f'{sum(map(bool, unknown))} of {len(prompts)} prompts hold characters that the '
                f"model's vocabulary lacks, {len(characters)} in all: "
                f'{characters[:MAX_SHOWN]!r}; the model reads each run of them as the same unknown '
                'token',
                stacklevel=2,
            )
        counts = self._tokenizer.token_counts(prompts, self._limit)
        cut = [i for i, count in enumerate(counts) if count > self._limit]
        if cut:
            warnings.warn(
                f'{len(cut)} of {len(prompts)} prompts are cut at the {self._limit} tokens that '
                f'the model reads: {prompts[cut[0]][:30]!r}... has {counts[cut[0]]}',
                stacklevel=2,
            )

    def _encode(self, params: Any, prompts: Sequence[str], negative: str | None) -> Pair:
        run = self._executables.call if self._mesh is None else in_mesh(self._mesh, call_jitted)

        def features(texts: Sequence[str]) -> Text:
            rows = self._tokenizer(list(texts), self._limit, self._limit)
            ids_BT, lengths_B = (share_batch(each, self._mesh) for each in rows)
            traced = {'params': params, 'ids_BT': ids_BT, 'lengths_B': lengths_B}
            return Text(run(encode, {'encoder': self._encoder}, traced), lengths_B)

        return features(prompts), None if negative is None else features([negative] * len(prompts))
