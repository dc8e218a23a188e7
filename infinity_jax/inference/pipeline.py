"""Prompts to images: `InfinityPipeline.from_pretrained(folder)(prompts).images`."""

import dataclasses
import math
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image
from tqdm import tqdm

from infinity_jax.config import ModelConfigs, QuantizationConfig, pixels_per_token
from infinity_jax.errors import UserError
from infinity_jax.inference.executables import Programs
from infinity_jax.inference.generator import Generator
from infinity_jax.inference.memory import plan_memory
from infinity_jax.inference.resolution import choose_schedule
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.scale_steps import controls
from infinity_jax.inference.text_encoder import PromptEncoder
from infinity_jax.inference.warmup import Request, calls_for, mode_of
from infinity_jax.runtime.hub import local_folder
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, make_mesh, to_host
from infinity_jax.text.characters import is_blank
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.transformer.model import Transformer
from infinity_jax.weights.model_folder import DEMO_FOLDER, LoadedModel, load_model, read_configs
from infinity_jax.weights.placement import (
    decoder_params,
    place,
    quantize_params,
    share_batch,
)

MAX_BATCH = 16  # images drawn in one program call
SEEDS = 2**32  # jax keys would silently take a larger seed modulo this


@dataclasses.dataclass(frozen=True)
class GeneratedImages:
    """Drawn images, prompt by prompt.

    Attributes:
      pixels: uint8 (images, Y, X, 3).
      prompts: the prompt of each image.
      seeds: (seed, index) of each: together with the settings they draw the same image again.
      batch_seconds: what each program call took, text included, and compiling where it was needed.
    """

    pixels: np.ndarray
    prompts: tuple[str, ...]
    seeds: tuple[tuple[int, int], ...]
    batch_seconds: tuple[float, ...] = ()

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(image) for image in self.pixels]


@jax.jit
def image_keys(seed: jax.Array, indices_B: jax.Array) -> jax.Array:
    """One random key an image; on a mesh they lie where the indices do."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices_B)


class InfinityPipeline:
    """A loaded model that draws; compiled once per batch size, `num` and sampling mode.

    Prompts of any length, seeds, guidance and temperature compile nothing; only guidance of exactly
    1 is another mode, without the unconditional half.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        mesh: Mesh | None = None,
        rewrite_prompt: Callable[[str], str] | None = None,
        max_batch: int = MAX_BATCH,
        offload_text: bool = False,
        programs: Programs | None = None,
        quantization: QuantizationConfig = QuantizationConfig(),
        text_length: int | None = None,
    ):
        """Takes the parts of a model.

        Args:
          loaded: transformer, tokenizer, text encoder and text tokenizer must be there. Parameters
            are numpy arrays, or jax arrays, which stay where they are.
          mesh: the devices that share weights and images; None: the default device.
          rewrite_prompt: applied to every prompt before it is tokenized.
          max_batch: images per program call.
          offload_text: keep the text encoder on the host between calls, see `PromptEncoder`.
          programs: where compiled ones are kept; None: nowhere.
          quantization: what is saved at some cost to the images.
          text_length: tokens that prompts are padded to and cut at; None: all the model reads.
        """
        check_complete(
            loaded, ('transformer_params', 'tokenizer_params', 'text_params', 'text_tokenizer')
        )
        config = loaded.configs.transformer
        self._mesh = mesh
        self._schedule = loaded.configs.schedule
        self._rewrite = rewrite_prompt or (lambda prompt: prompt)
        self._max_batch = max_batch
        self._model = Transformer(config)
        self._autoencoder = Autoencoder(loaded.configs.tokenizer)
        self._prompt_encoder = PromptEncoder(loaded, mesh, offload_text, text_length, programs)
        self._economy = quantization
        params = quantize_params(loaded.transformer_params, quantization, mesh)
        decoder = decoder_params(loaded.tokenizer_params)
        self._drawing = Generator(
            self._model,
            self._autoencoder,
            place(params, config.dtype, config, mesh),
            place(decoder, 'float32', loaded.configs.tokenizer, mesh),
            mesh,
            programs=programs,
            quantization=quantization,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | pathlib.Path = DEMO_FOLDER,
        *,
        revision: str | None = None,
        cache_dir: str | pathlib.Path | None = None,
        dtype: str | None = None,
        mesh: MeshConfig | None = None,
        ratio: float | str | None = None,
        budget: str | None = None,
        size: tuple[int, int] | None = None,
        max_batch: int = MAX_BATCH,
        request: Request | None = None,
        quantization: QuantizationConfig = QuantizationConfig(),
        text_length: int | None = None,
        **options: Any,
    ) -> 'InfinityPipeline':
        """Loads a model folder; without one, the demo that ships with the package.

        Memory is estimated before any weight is read: the text encoder leaves the device between
        calls, and fewer images are drawn at once, where that makes the model fit.

        Args:
          name: a folder, or org/name of a Hugging Face repository.
          revision, cache_dir: of the repository, see `local_folder`.
          dtype: of the products inside blocks; None: as the model's configuration says.
          mesh: the devices that share the work; None: the default device.
          ratio, budget, size: what to draw unless a call says otherwise, see `choose_schedule`.
          max_batch: images per program call, at most.
          request: what will be drawn first: its programs are loaded, or compiled, while the weights
            are read.
          quantization: what is saved at some cost to the images.
          text_length: tokens that prompts are padded to and cut at; None: all the model reads.
          options: of the constructor.

        Raises:
          UserError: no such model, an incomplete one, an image size that it cannot draw, or too
            little memory.
        """
        folder = local_folder(name, revision, cache_dir)
        configs = read_configs(folder)
        check_complete(configs, ('transformer', 'tokenizer', 'text'))
        transformer, tokenizer = configs.transformer, configs.tokenizer
        if dtype is not None:
            transformer = dataclasses.replace(transformer, dtype=dtype)
        schedule = choose_schedule(
            transformer, tokenizer, configs.schedule, ratio=ratio, budget=budget, size=size
        )
        configs = dataclasses.replace(configs, transformer=transformer, schedule=schedule)
        devices = None if mesh is None else make_mesh(mesh)
        plan = plan_memory(configs, max_batch, devices, quantization)
        programs = Programs(folder if devices is None else None)
        if request is not None and devices is None:
            wanted = (request, configs, schedule, plan.batch, quantization, text_length)
            for call in calls_for(*wanted):
                programs.prepare(*call)

        def load(part: str) -> LoadedModel:
            return load_model(folder, None, (part,), devices, configs)

        # Part by part, so that the host never holds two at once beside what is placed.
        params = quantize_params(load('transformer').transformer_params, quantization, devices)
        params = place(params, transformer.dtype, transformer, devices)
        decoder = decoder_params(load('tokenizer').tokenizer_params)
        decoder = place(decoder, 'float32', tokenizer, devices)
        text = load('text_encoder')
        loaded = LoadedModel(configs, params, decoder, text.text_params, text.text_tokenizer)
        options = {'offload_text': plan.offload_text, 'programs': programs, **options}
        options |= {'quantization': quantization, 'text_length': text_length}
        return cls(loaded, mesh=devices, max_batch=plan.batch, **options)

    @property
    def schedule(self) -> ScaleSchedule:
        """The token grids where a call names none: those of the model, or the released 1024²."""
        return self._schedule or ScaleSchedule.for_image(1.0, '1M')

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of what is drawn where a call names no schedule."""
        stride = pixels_per_token(self._model.config, self._autoencoder.config)
        return self.schedule.image_size(stride)

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        num: int = 1,
        seed: int = 0,
        negative: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        schedule: ScaleSchedule | None = None,
    ) -> GeneratedImages:
        """Draws `num` images of each prompt.

        Image i is drawn with a key of its own, from `seed` and i: it does not depend on how many
        others are asked for. More than one batch shows its progress.

        Args:
          prompts: one or several, none empty.
          num: images per prompt.
          seed: of all randomness, 0 to 2^32 - 1.
          negative: what the images should not show; replaces the learned unconditional text. A
            blank one counts as none.
          sampling: guidance, temperature, top-k, top-p.
          schedule: the token grids; by default those of the pipeline.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or num < 1:
            raise UserError('no prompt given; write what the image should show')
        batches = self.stream(
            prompts, num=num, seed=seed, negative=negative, sampling=sampling, schedule=schedule
        )
        prompts = [prompt for prompt in prompts for _ in range(num)]
        count = -(-len(prompts) // self._batch_size(len(prompts)))
        ready, drawn = [time.perf_counter()], []
        for pixels in tqdm(batches, 'drawing', count, unit='batch', disable=count == 1):
            drawn.append(pixels)
            ready.append(time.perf_counter())
        seeds = tuple((seed, i) for i in range(len(prompts)))
        return GeneratedImages(
            np.concatenate(drawn), tuple(prompts), seeds, tuple(np.diff(ready).tolist())
        )

    def stream(
        self,
        prompts: Sequence[str],
        *,
        num: int = 1,
        seed: int = 0,
        negative: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        schedule: ScaleSchedule | None = None,
    ) -> Iterator[np.ndarray]:
        """Draws `num` images a prompt, yielding uint8 batches as they are ready.

        Images of one prompt stand together and share its encoded text, as far as a batch holds
        the same number of all its prompts.
        """
        if not 0 <= seed < SEEDS:
            raise UserError(f'seed is {seed}; wanted a whole number from 0 to {SEEDS - 1}')
        schedule = schedule or self.schedule
        numbers = controls(sampling, schedule)
        mode = mode_of(sampling, self._economy)
        prompts = [prompt for prompt in prompts for _ in range(num)]
        rewritten = {prompt: self._rewrite(prompt) for prompt in dict.fromkeys(prompts)}
        negative = None if negative is None or is_blank(negative) else negative
        if negative is not None and not mode.guided:
            warnings.warn('the negative prompt has no effect: guidance is 1', stacklevel=2)
            negative = None
        unwanted = None if negative is None else self._rewrite(negative)
        read = list(rewritten.values()) + ([] if unwanted is None else [unwanted])
        self._prompt_encoder.warn_of_losses(read)
        size = self._batch_size(len(prompts))
        starts = range(0, len(prompts), size)
        # One shape, one compilation: the last batch is filled up with its last prompt.
        last = len(prompts) - 1
        shared = 1 if self._mesh is not None else math.gcd(num, size)
        batches = [
            [rewritten[prompts[min(i, last)]] for i in range(start, start + size, shared)]
            for start in starts
        ]
        texts = self._prompt_encoder(batches, unwanted)
        for start, (text, negative_text) in zip(starts, texts, strict=True):
            indices_B = share_batch(np.arange(start, start + size), self._mesh)
            keys_B = image_keys(np.uint32(seed), indices_B)
            pixels = self._drawing(keys_B, text, numbers, schedule, negative_text, mode)
            pixels = np.asarray(pixels if self._mesh is None else to_host(pixels, self._mesh))
            yield pixels[: len(prompts) - start]

    def _batch_size(self, images: int) -> int:
        """Images of a program call: a multiple of the mesh's shares of a batch."""
        shares = 1
        if self._mesh is not None:
            shares = self._mesh.shape['data'] * self._mesh.shape['fsdp']
        return -(-min(images, self._max_batch) // shares) * shares


def check_complete(loaded: LoadedModel | ModelConfigs, fields: Sequence[str]) -> None:
    """Raises `UserError` where one of these parts of a model is absent."""
    for field in fields:
        if getattr(loaded, field) is None:
            raise UserError(f'the model has no {field}; drawing needs a complete model folder')
