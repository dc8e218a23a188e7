"""Prompts to images: `InfinityPipeline.from_pretrained(folder)(prompts).images`."""

import functools
import math
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from tqdm import tqdm

from infinity_jax.config import QuantizationConfig, pixels_per_token, required
from infinity_jax.errors import UserError
from infinity_jax.inference.best_of import BestImages, Score
from infinity_jax.inference.generated_images import GeneratedImages
from infinity_jax.inference.job import GenerationJob
from infinity_jax.inference.sampling import SamplingConfig, check_unguided
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.characters import is_blank

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from infinity_jax.inference.edit import Edit, EditedImages
    from infinity_jax.inference.editor import ImageEditor
    from infinity_jax.inference.executables import Executables
    from infinity_jax.inference.source_images import Source
    from infinity_jax.inference.text_encoder import Pair
    from infinity_jax.inference.warmup import GenerationRequest
    from infinity_jax.sharding import MeshConfig
    from infinity_jax.weights.adapter_file import Adapter
    from infinity_jax.weights.placement import PlacedModel

MAX_BATCH = 16  # images generated in one program call
SEEDS = 2**32  # jax keys would silently take a larger seed modulo this


class PipelineOptions(TypedDict, total=False):
    """Further keywords of `InfinityPipeline.from_pretrained`.

    Attributes:
      rewrite_prompt, max_batch, text_length: see the constructor.
      text_dtype: of the text encoder's products, see `with_text_dtype`.
      attention: 'auto', 'xla', 'cudnn' or 'splash', see `attention_choice.choose`.
      text_encoder: the memory that holds it, 'auto', 'device' or 'host', see `ModelConfigs`.
      guided: see the constructor (default: True).
      aspect_ratio, height_over_width, budget, size: of images unless a call has a schedule of its
        own, see `choose_schedule`.
      ratio: the former name of `height_over_width`.
    """

    rewrite_prompt: Callable[[str], str] | None
    text_dtype: str
    attention: str | None
    text_encoder: str | None
    guided: bool
    max_batch: int
    text_length: int | None
    aspect_ratio: str | None
    height_over_width: float | str | None
    budget: str | None
    size: tuple[int, int] | None
    ratio: float | str | None


OF_CONSTRUCTOR = ('rewrite_prompt', 'max_batch', 'text_length', 'guided')


class InfinityPipeline:
    """A model that generates images; compiled once per batch size, `num` and static settings.

    Prompts of any length, seeds, guidance and temperature compile nothing; only guidance of exactly
    1 is another program, without the unconditional half.
    """

    def __init__(
        self,
        model: 'PlacedModel',
        *,
        rewrite_prompt: Callable[[str], str] | None = None,
        max_batch: int = MAX_BATCH,
        text_length: int | None = None,
        guided: bool = True,
        executables: 'Executables | None' = None,
    ):
        """Takes a model whose weights are in place, see `placement.place_model`.

        Args:
          model: configurations, placed weights and text tokenizer.
          rewrite_prompt: applied to every prompt before it is tokenized.
          max_batch: images per program call, at most.
          text_length: tokens that prompts are padded to and cut at; None: all the model reads.
          guided: False: memory was planned for calls without guidance, others are refused.
          executables: the store of compiled programs; None: nothing is stored.
        """
        configs = model.configs
        self._model = model
        self._mesh = model.mesh
        self._schedule = configs.schedule
        self._rewrite = rewrite_prompt or (lambda prompt: prompt)
        self._max_batch, self._guided = max_batch, guided
        transformer = required(configs.transformer, 'transformer')
        tokenizer = required(configs.tokenizer, 'tokenizer')
        self._stride = pixels_per_token(transformer, tokenizer)
        self._quantization, self._executables = model.quantization, executables
        # Imported here: the class is at hand before flax and the networks are loaded.
        from infinity_jax.inference.generator import Generator
        from infinity_jax.inference.text_encoder import PromptEncoder

        self._prompt_encoder = PromptEncoder(model, text_length, executables)
        self._generator = Generator.of_model(model, executables)

    @classmethod
    def from_pretrained(
        cls,
        name: str | pathlib.Path = DEMO_FOLDER,
        *,
        revision: str | None = None,
        cache_dir: str | pathlib.Path | None = None,
        dtype: str | None = None,
        mesh: 'MeshConfig | Mesh | None' = None,
        quantization: QuantizationConfig = QuantizationConfig(),
        request: 'GenerationRequest | None' = None,
        verify: bool = True,
        adapters: 'Sequence[str | os.PathLike[str] | Adapter]' = (),
        **options: Unpack[PipelineOptions],
    ) -> 'InfinityPipeline':
        """Loads a model folder; without one, the demo that ships with the package.

        Memory is estimated before any weight is read: where that makes the model fit, the text
        encoder leaves the device between calls, and fewer images are generated at once. Weights and
        cache go to 8 bits by themselves only where `quantization` is 'auto' for them.

        Args:
          name: a folder, or org/name of a Hugging Face repository.
          revision, cache_dir: of the repository, see `fetch.fetch_model`.
          dtype: of the products inside blocks; None: as in the model's configuration, but float32
            in place of bfloat16 on an NVIDIA card before Ampere, which multiplies none.
          mesh: the devices that share the work, or how all of them do; None: the default device.
          quantization: lossy savings of memory.
          request: the first call that will be made: its programs are loaded, or compiled, while
            the weights are read.
          verify: whether weights are compared with their hashes, see `load_model`.
          adapters: LoRA adapters to apply, each a path or 'PATH:STRENGTH': a run's
            adapter.safetensors, or a folder in PEFT's layout; see `Adapter`.
          options: image size, batch size and text, see `PipelineOptions`.

        Raises:
          UserError: no such model, a damaged or incomplete one, an image size that it cannot
            generate, a dtype that the card lacks, adapters that do not fit, or too little memory.
          TypeError: an unknown option.
        """
        if unknown := options.keys() - PipelineOptions.__annotations__.keys():
            raise TypeError(f'from_pretrained() has no option {", ".join(sorted(unknown))}')
        size: dict[str, Any] = dict(options)
        of_pipeline = {key: size.pop(key) for key in OF_CONSTRUCTOR if key in size}
        text_dtype = size.pop('text_dtype', '')
        # Imported here: the class is at hand before flax and the networks are loaded.
        from infinity_jax.inference.loading import load_for_generation, read_for_generation
        from infinity_jax.weights.fetch import fetch_model

        folder = fetch_model(name, revision, cache_dir)
        ready = load_for_generation(
            folder,
            read_for_generation(folder, dtype, text_dtype, mesh=mesh, **size),
            max_batch=of_pipeline.pop('max_batch', MAX_BATCH),
            mesh=mesh,
            quantization=quantization,
            request=request,
            text_length=of_pipeline.get('text_length'),
            guided=of_pipeline.get('guided', True),
            verify=verify,
            adapters=adapters,
        )
        return cls(ready.model, max_batch=ready.batch, executables=ready.executables, **of_pipeline)

    @property
    def schedule(self) -> ScaleSchedule:
        """The token grids where a call names none: those of the model, or the released 1024²."""
        return self._schedule or ScaleSchedule.for_image(1.0, '1M')

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of images where a call names no schedule."""
        return self.schedule.image_size(self._stride)

    @property
    def max_batch(self) -> int:
        """Images per program call, at most; memory may allow fewer than were asked for."""
        return self._max_batch

    @property
    def quantization(self) -> QuantizationConfig:
        """The formats of weights and cache in use, none of them 'auto'."""
        return self._quantization

    @property
    def dtype(self) -> str:
        """The dtype of the products inside blocks; a card may lack that of the model."""
        return required(self._model.configs.transformer, 'transformer').dtype

    @property
    def text_dtype(self) -> str:
        """The dtype of the products in the text encoder."""
        return self._model.configs.text_products

    @property
    def decoder_precision(self) -> str:
        """The precision of the decoder's convolutions in use, not 'auto'."""
        return self._generator.decoder_precision

    def warn_of_losses(self, prompts: Sequence[str]) -> None:
        """Warns of prompts that are cut, or that hold characters which the vocabulary lacks."""
        self._prompt_encoder.warn_of_losses([self._rewrite(prompt) for prompt in prompts])

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        num: int = 1,
        seed: int = 0,
        negative: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        schedule: ScaleSchedule | None = None,
        score: Score | None = None,
        keep: int | None = None,
    ) -> GeneratedImages:
        """Generates `num` images of each prompt; with a score, returns the best `keep` of them.

        Image i has a random key of its own, from `seed` and i: it does not depend on the number of
        images. More than one batch shows its progress.

        Args:
          prompts: one or several, none empty.
          num: images per prompt.
          seed: of all randomness, 0 to 2^32 - 1.
          negative: what the images should not show; replaces the learned unconditional text. A
            blank one counts as none.
          sampling: guidance, temperature, top-k, top-p.
          schedule: the token grids; by default those of the pipeline.
          score: PIL images and their prompts to one number for each, the higher the better. Called
            once per batch.
          keep: images per prompt that are returned, the best first; None: all.

        Raises:
          UserError: no prompt or an empty one, a seed out of range, sampling settings that do not
            fit the schedule or the model, or a score that is not a number for each image.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or num < 1:
            raise UserError('no prompt given; write what the image should show')
        if keep is not None and score is None:
            raise UserError(f'keep is {keep} without a score; give a function that scores images')
        best = None if score is None else BestImages(prompts, num, keep, score)
        batches = self.stream(
            prompts, num=num, seed=seed, negative=negative, sampling=sampling, schedule=schedule
        )
        prompts = [prompt for prompt in prompts for _ in range(num)]
        count = -(-len(prompts) // self._batch_size(len(prompts)))
        ready = [time.perf_counter()]
        generated: list[np.ndarray] = []
        scores: tuple[float, ...] = ()
        for pixels in tqdm(batches, 'generating', count, unit='batch', disable=count == 1):
            (generated.append if best is None else best.add)(pixels)
            ready.append(time.perf_counter())
        if best is None:
            pixels, numbers = np.concatenate(generated), list(range(len(prompts)))
        else:
            pixels, numbers, scores = best.result()
        return GeneratedImages(
            pixels,
            tuple(prompts[i] for i in numbers),
            tuple((seed, i) for i in numbers),
            tuple(np.diff(ready).tolist()),
            scores,
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
        """Generates `num` images per prompt and yields uint8 batches as they are ready.

        Images of one prompt follow each other and share its encoded text, as far as a batch holds
        the same number of all its prompts.
        """
        seeds = [(seed, i) for i in range(len(prompts) * num)]
        schedule = schedule or self.schedule
        yield from self.run(GenerationJob(prompts, seeds, schedule, num, sampling, negative))

    def run(self, job: GenerationJob) -> Iterator[np.ndarray]:
        """Generates a job's images and yields uint8 batches as they are ready.

        Raises:
          UserError: a seed out of range, or sampling settings that do not fit schedule or model.
        """
        for seed, _ in job.seeds:
            if not isinstance(seed, (int, np.integer)) or not 0 <= seed < SEEDS:
                raise UserError(f'seed is {seed!r}; wanted a whole number from 0 to {SEEDS - 1}')
        numbers = job.sampling.traced(job.schedule)
        settings = job.sampling.static(job.schedule, self._quantization)
        if not self._guided:
            check_unguided(job.sampling.guidance, settings.guided)
        count = len(job.seeds)
        size = self._batch_size(count)
        # One shape, one compilation: the last batch is filled up with its last image.
        batches = [
            [min(i, count - 1) for i in range(start, start + size)]
            for start in range(0, count, size)
        ]
        texts = self._texts(job, batches, settings.guided)
        for rows, text in zip(batches, texts, strict=True):
            seeds = np.array([job.seeds[i] for i in rows])
            given = None if job.sources is None else job.sources.rows([i // job.num for i in rows])
            pixels = self._generator.images(seeds, text, numbers, settings, given, job.flip_rate)
            yield pixels[: count - rows[0]]

    def _texts(
        self, job: GenerationJob, batches: Sequence[Sequence[int]], guided: bool
    ) -> 'Iterator[Pair]':
        """The encoded prompts of each batch, and what replaces the unconditional text if any."""
        negative = None if job.negative is None or is_blank(job.negative) else job.negative
        if negative is not None and not guided:
            reason = 'guidance is 1, or off at all scales'
            warnings.warn(f'the negative prompt has no effect: {reason}', stacklevel=4)
            negative = None
        texts_read = [*job.prompts, *(job.source_prompts or ()), *([negative] if negative else ())]
        rewritten = {text: self._rewrite(text) for text in dict.fromkeys(texts_read)}
        self._prompt_encoder.warn_of_losses([*rewritten.values()])
        shared = 1 if self._mesh is not None else math.gcd(job.num, len(batches[0]))

        def encoded(prompts: Sequence[str]) -> 'Iterable[Pair]':
            texts = [[rewritten[prompts[i // job.num]] for i in rows[::shared]] for rows in batches]
            return self._prompt_encoder(texts, None if negative is None else rewritten[negative])

        if job.source_prompts is None:
            yield from encoded(job.prompts)
            return
        for (text, _), (other, _) in zip(
            encoded(job.prompts), encoded(job.source_prompts), strict=True
        ):
            yield text, other

    def edit(
        self,
        edits: 'Edit | Sequence[Edit]',
        *,
        num: int = 1,
        seed: int = 0,
        negative: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
    ) -> 'EditedImages':
        """Edits images: inpainting, outpainting, variation, and editing by words.

        Edits may have any sources, masks and strengths; none of them compiles anything. A source is
        resized to the size that the model generates, stretched where the shapes differ, and the
        result to the size of the source. Image i has the random key of (seed, i), as in generation.

        Args:
          edits: one or several.
          num: images per edit.
          seed, negative, sampling: as in generation.

        Raises:
          UserError: an image or mask that cannot be read, or settings that do not fit.
        """
        edits = list(edits) if isinstance(edits, Sequence) else [edits]
        if not edits or num < 1:
            raise UserError('no edit given; name an image and what it should show')
        seeds = [(seed, i) for i in range(len(edits) * num)]
        return self._editor.edit(edits, seeds, num=num, negative=negative, sampling=sampling)

    def reconstruct(self, image: 'Source', *, scales: int | None = None) -> np.ndarray:
        """An image through the tokenizer and back: what the model sees of it.

        Args:
          image: a path, an encoded image, a PIL image, or pixels, uint8 (Y, X, 3).
          scales: the number of first scales whose bits are used; None: all.

        Returns:
          uint8 (Y, X, 3), at the size of the image.

        Raises:
          UserError: an image that cannot be read, or a number of scales that there is not.
        """
        return self._editor.reconstruct(image, scales)

    @functools.cached_property
    def _editor(self) -> 'ImageEditor':
        """The part that edits; its encoder's weights are read at the first edit."""
        from infinity_jax.inference.editor import ImageEditor

        return ImageEditor(self._model, self.schedule, self._generator, self.run, self._executables)

    def _batch_size(self, images: int) -> int:
        """Images per program call: a multiple of the mesh's shares of a batch."""
        shares = 1
        if self._mesh is not None:
            shares = self._mesh.shape['data'] * self._mesh.shape['fsdp']
        return -(-min(images, self._max_batch) // shares) * shares
