"""Prompts to images: `InfinityPipeline.from_pretrained(folder)(prompts).images`."""

import math
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from tqdm import tqdm

from infinity_jax.config import QuantizationConfig, pixels_per_token, required
from infinity_jax.errors import UserError
from infinity_jax.inference.best_of import BestImages, Score
from infinity_jax.inference.generated_images import GeneratedImages
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.runtime.hub import DEMO_FOLDER, local_folder
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.characters import is_blank

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from infinity_jax.inference.executables import Executables
    from infinity_jax.inference.warmup import GenerationRequest
    from infinity_jax.sharding import MeshConfig
    from infinity_jax.weights.placement import PlacedModel

MAX_BATCH = 16  # images generated in one program call
SEEDS = 2**32  # jax keys would silently take a larger seed modulo this


class PipelineOptions(TypedDict, total=False):
    """Further keywords of `InfinityPipeline.from_pretrained`.

    Attributes:
      rewrite_prompt, max_batch, text_length: see the constructor.
      aspect_ratio, height_over_width, budget, size: of images unless a call has a schedule of its
        own, see `choose_schedule`.
      ratio: the former name of `height_over_width`.
    """

    rewrite_prompt: Callable[[str], str] | None
    max_batch: int
    text_length: int | None
    aspect_ratio: str | None
    height_over_width: float | str | None
    budget: str | None
    size: tuple[int, int] | None
    ratio: float | str | None


OF_CONSTRUCTOR = ('rewrite_prompt', 'max_batch', 'text_length')


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
        executables: 'Executables | None' = None,
    ):
        """Takes a model whose weights are in place, see `placement.place_model`.

        Args:
          model: configurations, placed weights and text tokenizer.
          rewrite_prompt: applied to every prompt before it is tokenized.
          max_batch: images per program call, at most.
          text_length: tokens that prompts are padded to and cut at; None: all the model reads.
          executables: the store of compiled programs; None: nothing is stored.
        """
        configs = model.configs
        self._mesh = model.mesh
        self._schedule = configs.schedule
        self._rewrite = rewrite_prompt or (lambda prompt: prompt)
        self._max_batch = max_batch
        transformer = required(configs.transformer, 'transformer')
        tokenizer = required(configs.tokenizer, 'tokenizer')
        self._stride = pixels_per_token(transformer, tokenizer)
        self._quantization = model.quantization
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
        **options: Unpack[PipelineOptions],
    ) -> 'InfinityPipeline':
        """Loads a model folder; without one, the demo that ships with the package.

        Memory is estimated before any weight is read: where that makes the model fit, the text
        encoder leaves the device between calls, and fewer images are generated at once.

        Args:
          name: a folder, or org/name of a Hugging Face repository.
          revision, cache_dir: of the repository, see `local_folder`.
          dtype: of the products inside blocks; None: as in the model's configuration.
          mesh: the devices that share the work, or how all of them do; None: the default device.
          quantization: lossy savings of memory.
          request: the first call that will be made: its programs are loaded, or compiled, while
            the weights are read.
          verify: whether weights are compared with their hashes, see `load_model`.
          options: image size, batch size and text, see `PipelineOptions`.

        Raises:
          UserError: no such model, a damaged or incomplete one, an image size that it cannot
            generate, or too little memory.
          TypeError: an unknown option.
        """
        if unknown := options.keys() - PipelineOptions.__annotations__.keys():
            raise TypeError(f'from_pretrained() has no option {", ".join(sorted(unknown))}')
        size: dict[str, Any] = dict(options)
        of_pipeline = {key: size.pop(key) for key in OF_CONSTRUCTOR if key in size}
        # Imported here: the class is at hand before flax and the networks are loaded.
        from infinity_jax.inference.loading import load_for_generation, read_for_generation

        folder = local_folder(name, revision, cache_dir)
        ready = load_for_generation(
            folder,
            read_for_generation(folder, dtype, **size),
            max_batch=of_pipeline.pop('max_batch', MAX_BATCH),
            mesh=mesh,
            quantization=quantization,
            request=request,
            text_length=of_pipeline.get('text_length'),
            verify=verify,
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
        ready, generated = [time.perf_counter()], []
        for pixels in tqdm(batches, 'generating', count, unit='batch', disable=count == 1):
            (generated.append if best is None else best.add)(pixels)
            ready.append(time.perf_counter())
        if best is None:
            pixels, numbers, scores = np.concatenate(generated), list(range(len(prompts))), ()
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
        indices: Sequence[int] | np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Generates `num` images per prompt and yields uint8 batches as they are ready.

        Images of one prompt follow each other and share its encoded text, as far as a batch holds
        the same number of all its prompts. The random key of an image comes from `seed` and from
        its index: its number, or that of `indices`.
        """
        if not 0 <= seed < SEEDS:
            raise UserError(f'seed is {seed}; wanted a whole number from 0 to {SEEDS - 1}')
        schedule = schedule or self.schedule
        numbers = sampling.traced(schedule)
        settings = sampling.static(schedule, self._quantization)
        prompts = [prompt for prompt in prompts for _ in range(num)]
        rewritten = {prompt: self._rewrite(prompt) for prompt in dict.fromkeys(prompts)}
        negative = None if negative is None or is_blank(negative) else negative
        if negative is not None and not settings.guided:
            warnings.warn('the negative prompt has no effect: guidance is 1', stacklevel=2)
            negative = None
        negative = None if negative is None else self._rewrite(negative)
        texts_read = [*rewritten.values()] + ([] if negative is None else [negative])
        self._prompt_encoder.warn_of_losses(texts_read)
        size = self._batch_size(len(prompts))
        starts = range(0, len(prompts), size)
        # One shape, one compilation: the last batch is filled up with its last prompt.
        last = len(prompts) - 1
        index_of = np.arange(len(prompts)) if indices is None else np.asarray(indices)
        shared = 1 if self._mesh is not None else math.gcd(num, size)
        batches = [
            [rewritten[prompts[min(i, last)]] for i in range(start, start + size, shared)]
            for start in starts
        ]
        texts = self._prompt_encoder(batches, negative)
        for start, text in zip(starts, texts, strict=True):
            rows = index_of[np.minimum(np.arange(start, start + size), last)]
            pixels = self._generator.images(seed, rows, text, numbers, settings)
            yield pixels[: len(prompts) - start]

    def _batch_size(self, images: int) -> int:
        """Images per program call: a multiple of the mesh's shares of a batch."""
        shares = 1
        if self._mesh is not None:
            shares = self._mesh.shape['data'] * self._mesh.shape['fsdp']
        return -(-min(images, self._max_batch) // shares) * shares
