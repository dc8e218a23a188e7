"""Prompts to pictures: `InfinityPipeline.from_pretrained(folder)(prompts).images`."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from infinity_jax.config import UserError
from infinity_jax.generate import Text, controls, draw_pictures
from infinity_jax.model_folder import ModelBundle, load_model
from infinity_jax.sampling import SamplingConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.transformer.model import Transformer

DEMO_FOLDER = pathlib.Path(__file__).parent / 'demo'  # the model that ships with the package
MAX_BATCH = 16  # pictures drawn in one program call


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Drawn pictures, prompt by prompt.

    Attributes:
      pixels: uint8 (pictures, Y, X, 3).
      prompts: the prompt of each picture.
      seeds: (seed, index) of each: together with the settings they draw the same picture again.
    """

    pixels: np.ndarray
    prompts: tuple[str, ...]
    seeds: tuple[tuple[int, int], ...]

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(picture) for picture in self.pixels]


class InfinityPipeline:
    """A loaded model that draws; compiled once per batch size and sampling mode."""

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        rewrite_prompt: Callable[[str], str] | None = None,
        max_batch: int = MAX_BATCH,
    ):
        """Takes the parts of a model.

        Args:
          bundle: transformer, tokenizer, text encoder and text tokenizer must be there.
          rewrite_prompt: applied to every prompt before it is tokenized.
          max_batch: pictures per program call.
        """
        for part in ('transformer_params', 'tokenizer_params', 'text_params', 'text_tokenizer'):
            if getattr(bundle, part) is None:
                raise UserError(f'the model has no {part}; drawing needs a complete model folder')
        self._bundle = bundle
        self._rewrite = rewrite_prompt or (lambda prompt: prompt)
        self._max_batch = max_batch
        self._model = Transformer(bundle.transformer_config)
        self._autoencoder = Autoencoder(bundle.tokenizer_config)
        encoder = T5Encoder(bundle.text_config)
        self._encode = jax.jit(encoder.apply)
        self._params = jax.device_put(
            {
                'transformer': {'params': bundle.transformer_params},
                'tokenizer': {'params': bundle.tokenizer_params},
                'text': {'params': bundle.text_params},
            }
        )

    @classmethod
    def from_pretrained(cls, folder: str | pathlib.Path = DEMO_FOLDER, **options: Any):
        """Loads a model folder; without one, the demo that ships with the package."""
        return cls(load_model(folder), **options)

    @property
    def schedule(self) -> ScaleSchedule:
        """The schedule that the model folder names, or the released one of 1024²."""
        return self._bundle.schedule or ScaleSchedule.for_picture(1.0, '1M')

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        num: int = 1,
        seed: int = 0,
        negative: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        schedule: ScaleSchedule | None = None,
    ) -> Pictures:
        """Draws `num` pictures of each prompt.

        Picture i is drawn with a key of its own, from `seed` and i: it does not depend on how many
        others are asked for.

        Args:
          prompts: one or several, none empty.
          num: pictures per prompt.
          seed: of all randomness.
          negative: what the pictures should not show; replaces the learned unconditional text.
          sampling: guidance, temperature, top-k, top-p.
          schedule: the token grids; by default those that the model folder names.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        prompts = [prompt for prompt in prompts for _ in range(num)]
        if not prompts:
            raise UserError('no prompt given; write what the picture should show')
        batches = list(
            self.stream(prompts, seed=seed, negative=negative, sampling=sampling, schedule=schedule)
        )
        seeds = tuple((seed, i) for i in range(len(prompts)))
        return Pictures(np.concatenate(batches), tuple(prompts), seeds)

    def stream(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        negative: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        schedule: ScaleSchedule | None = None,
    ) -> Iterator[np.ndarray]:
        """Draws one picture a prompt, yielding uint8 batches as they are ready."""
        schedule = schedule or self.schedule
        traced = controls(sampling, schedule)
        guided = any(g != 1 for g in sampling.guidance)
        size = min(len(prompts), self._max_batch)
        for start in range(0, len(prompts), size):
            chunk = list(prompts[start : start + size])
            full = chunk + [chunk[-1]] * (size - len(chunk))  # one shape, one compilation
            text = self.encode_text(full)
            unwanted = None
            if guided and negative is not None:
                unwanted = self.encode_text([negative] * size)
            indices = jnp.arange(start, start + size)
            keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
            pixels = draw_pictures(
                self._model,
                self._autoencoder,
                self._params['transformer'],
                self._params['tokenizer'],
                keys_B,
                text,
                traced,
                schedule,
                unwanted,
                guided=guided,
                guidance_layer=sampling.guidance_layer,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
            )
            yield np.asarray(pixels)[: len(chunk)]

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Tokenizes and encodes prompts, padded to the model's text length."""
        length = self._bundle.transformer_config.text_length
        rewritten = [self._rewrite(prompt) for prompt in prompts]
        ids_BT, lengths_B = self._bundle.text_tokenizer(rewritten, length, length)
        return Text(self._encode(self._params['text'], ids_BT, lengths_B), jnp.asarray(lengths_B))
