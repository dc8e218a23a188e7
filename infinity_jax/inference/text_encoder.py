"""Prompts to text features, on a device that may be too small to keep the text encoder."""

import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.inference.executables import Programs, call_jitted
from infinity_jax.inference.scale_steps import Text
from infinity_jax.sharding import in_mesh
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.weights.model_folder import LoadedModel
from infinity_jax.weights.placement import hold, place, share_batch

MAX_SHOWN = 20  # unknown characters in a warning
Pair = tuple[Text, Text | None]  # prompts and what replaces the unconditional text, equally long


@functools.partial(jax.jit, static_argnames='encoder')
def encode(encoder: T5Encoder, params: Any, ids_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Padded token ids to text features (B, T, E); compiled once per shape and encoder."""
    return encoder.apply({'params': params}, ids_BT, lengths_B)


def padded_length(config: TransformerConfig, text_length: int | None) -> int:
    """Tokens that prompts are padded to and cut at: as asked for, or all that the model reads.

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
        loaded: LoadedModel,
        mesh: Mesh | None = None,
        offload: bool = False,
        text_length: int | None = None,
        programs: Programs | None = None,
    ):
        """Takes the text parts of a model.

        Args:
          loaded: of it, the text encoder and tokenizer and the transformer's configuration.
          mesh: the devices that share the work; None: the default device.
          offload: keep the weights on the host. Each call puts them on the device, encodes all its
            prompts and frees the room again.
          text_length: tokens that prompts are padded to and cut at; None: all that the model
            reads. Fewer are less work: see docs/speed.md.
          programs: where compiled ones are kept; None: nowhere.

        Raises:
          UserError: more tokens than the model reads, or none.
        """
        config = loaded.configs.transformer
        self._limit = padded_length(config, text_length)
        self._mesh = mesh
        self._programs = programs or Programs()
        self._tokenizer = loaded.text_tokenizer
        # In the transformer's dtype as in training, so that samples there and here agree.
        self._encoder = T5Encoder(loaded.configs.text, jnp.dtype(config.dtype))
        self._offload = offload
        if offload:
            self._params = hold(loaded.text_params, config.dtype)
        else:
            self._params = place(loaded.text_params, config.dtype, loaded.configs.text, mesh)

    def __call__(self, batches: Iterable[Sequence[str]], negative: str | None) -> Iterable[Pair]:
        """Encodes batches of prompts as they are asked for, or all at once when offloading.

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
        """Warns in one line of prompts whose end the model will not read.

        In another line, warns of characters that the vocabulary lacks: all of them are read as the
        same unknown token.
        """
        unknown = self._tokenizer.unknown_characters(prompts, self._limit)
        characters = ''.join(dict.fromkeys(''.join(unknown)))
        if characters:
            warnings.warn(
                f'{sum(map(bool, unknown))} of {len(prompts)} prompts hold characters that the '
                f"model's vocabulary lacks, {len(characters)} in all: "
                f'{characters[:MAX_SHOWN]!r}; it reads every such word as the same unknown token',
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
        unwanted = [] if negative is None else [negative]
        run = self._programs.call if self._mesh is None else in_mesh(self._mesh, call_jitted)

        def features(texts: Sequence[str]) -> Text:
            rows = self._tokenizer(list(texts), self._limit, self._limit)
            ids_BT, lengths_B = (share_batch(each, self._mesh) for each in rows)
            traced = {'params': params, 'ids_BT': ids_BT, 'lengths_B': lengths_B}
            return Text(run(encode, {'encoder': self._encoder}, traced), lengths_B)

        return features(prompts), features(unwanted * len(prompts)) if unwanted else None
