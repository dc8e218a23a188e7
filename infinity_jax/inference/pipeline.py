"""Prompts to images: `InfinityPipeline.from_pretrained(folder)(prompts).images`."""

import dataclasses
import math
import pathlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypedDict, Unpack

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from infinity_jax.config import QuantizationConfig, pixels_per_token, required
from infinity_jax.errors import UserError
from infinity_jax.inference.edit import EditConfig, EditedImages, EditSource, schedule_for
from infinity_jax.inference.editor import ImageEditor, one_each, sources_of
from infinity_jax.inference.executables import Executables
from infinity_jax.inference.generate import NetworkParams, Networks
from infinity_jax.inference.generator import Generator
from infinity_jax.inference.job import GenerationJob
from infinity_jax.inference.memory import plan_memory
from infinity_jax.inference.resolution import choose_schedule
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.scale_steps import GenerationInputs
from infinity_jax.inference.source_encoder import SourceEncoder, source_codes
from infinity_jax.inference.source_images import Source, resized
from infinity_jax.inference.text_encoder import Pair, PromptEncoder
from infinity_jax.inference.warmup import GenerationRequest, calls_for
from infinity_jax.runtime.hub import local_folder
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, in_mesh, make_mesh, to_host
from infinity_jax.text.characters import is_blank
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.transformer.model import Transformer
from infinity_jax.weights.model_folder import DEMO_FOLDER, LoadedModel, load_model, read_configs
from infinity_jax.weights.placement import (
    PlacedModel,
    check_complete,
    place_decoder,
    place_text_encoder,
    place_transformer,
    share_batch,
)

MAX_BATCH = 16  # images generated in one program call
SEEDS = 2**32  # jax keys would silently take a larger seed modulo this


@dataclasses.dataclass(frozen=True)
class GeneratedImages:
    """Generated images, prompt by prompt.

    Attributes:
      pixels: uint8 (images, Y, X, 3).
      prompts: the prompt of each image.
      seeds: (seed, index) of each: with the same settings they generate the same image again.
      batch_seconds: duration of each program call, text included, and compiling where needed.
    """

    pixels: np.ndarray
    prompts: tuple[str, ...]
    seeds: tuple[tuple[int, int], ...]
    batch_seconds: tuple[float, ...] = ()

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(image) for image in self.pixels]


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


@jax.jit
def image_keys(seeds_B: jax.Array, indices_B: jax.Array) -> jax.Array:
    """One random key per image, with the sharding of seeds (uint32) and indices."""
    return jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index))(
        seeds_B, indices_B
    )


class InfinityPipeline:
    """A model that generates images; compiled once per batch size, `num` and static settings.

    Prompts of any length, seeds, guidance and temperature compile nothing; only guidance of exactly
    1 is another program, without the unconditional half.
    """

    def __init__(
        self,
        model: PlacedModel,
        *,
        rewrite_prompt: Callable[[str], str] | None = None,
        max_batch: int = MAX_BATCH,
        text_length: int | None = None,
        executables: Executables | None = None,
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
        self._prompt_encoder = PromptEncoder(model, text_length, executables)
        self._generator = Generator(
            Networks(Transformer(transformer), Autoencoder(tokenizer)),
            NetworkParams(model.transformer_params, model.tokenizer_params),
            model.mesh,
            int8_cache=model.quantization.cache == 'int8',
            executables=executables,
        )
        self._patchify = transformer.spatial_patchify
        encoder = SourceEncoder(tokenizer, model.read_encoder, model.mesh)
        self._editor = ImageEditor(encoder, self.run, self._stride, self._patchify)

    @classmethod
    def from_pretrained(
        cls,
        name: str | pathlib.Path = DEMO_FOLDER,
        *,
        revision: str | None = None,
        cache_dir: str | pathlib.Path | None = None,
        dtype: str | None = None,
        mesh: MeshConfig | None = None,
        quantization: QuantizationConfig = QuantizationConfig(),
        request: GenerationRequest | None = None,
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
          mesh: the devices that share the work; None: the default device.
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
        folder = local_folder(name, revision, cache_dir)
        configs = read_configs(folder)
        check_complete(configs, ('transformer', 'tokenizer', 'text'))
        transformer = required(configs.transformer, 'transformer')
        tokenizer = required(configs.tokenizer, 'tokenizer')
        if dtype is not None:
            transformer = dataclasses.replace(transformer, dtype=dtype)
            configs = dataclasses.replace(configs, transformer=transformer)
        configs = dataclasses.replace(configs, schedule=choose_schedule(configs, **size))
        devices = None if mesh is None else make_mesh(mesh)
        max_batch = of_pipeline.pop('max_batch', MAX_BATCH)
        plan = plan_memory(configs, max_batch, devices, quantization)
        executables = Executables(folder if devices is None else None)
        if request is not None and devices is None:
            length = of_pipeline.get('text_length')
            for call in calls_for(request, configs, plan.batch, quantization, length):
                executables.prepare(*call)

        def load(part: str) -> LoadedModel:
            return load_model(folder, None, (part,), devices, configs, verify=verify)

        # Part by part, so that the host never holds two parts at once.
        params = place_transformer(
            required(load('transformer').transformer_params, 'transformer'),
            transformer,
            quantization,
            devices,
        )
        decoder = place_decoder(
            required(load('tokenizer').tokenizer_params, 'tokenizer'), tokenizer, devices
        )
        text = load('text_encoder')
        check_complete(text, ('text_params', 'text_tokenizer'))
        model = PlacedModel(
            configs,
            params,
            decoder,
            place_text_encoder(
                required(text.text_params, 'text encoder'), configs, devices, plan.offload_text
            ),
            required(text.text_tokenizer, 'vocabulary'),
            quantization,
            devices,
            plan.offload_text,
            lambda: required(
                load_model(folder, None, ('tokenizer',), None, configs).tokenizer_params,
                'tokenizer',
            ),
        )
        return cls(model, max_batch=plan.batch, executables=executables, **of_pipeline)

    @property
    def schedule(self) -> ScaleSchedule:
        """The token grids where a call names none: those of the model, or the released 1024²."""
        return self._schedule or ScaleSchedule.for_image(1.0, '1M')

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of images where a call names no schedule."""
        return self.schedule.image_size(self._stride)

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
        """Generates `num` images of each prompt.

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

        Raises:
          UserError: no prompt or an empty one, a seed out of range, or sampling settings that do
            not fit the schedule or the model.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or num < 1:
            raise UserError('no prompt given; write what the image should show')
        batches = self.stream(
            prompts, num=num, seed=seed, negative=negative, sampling=sampling, schedule=schedule
        )
        prompts = [prompt for prompt in prompts for _ in range(num)]
        count = -(-len(prompts) // self._batch_size(len(prompts)))
        ready, generated = [time.perf_counter()], []
        for pixels in tqdm(batches, 'generating', count, unit='batch', disable=count == 1):
            generated.append(pixels)
            ready.append(time.perf_counter())
        seeds = tuple((seed, i) for i in range(len(prompts)))
        return GeneratedImages(
            np.concatenate(generated), tuple(prompts), seeds, tuple(np.diff(ready).tolist())
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
            if not 0 <= seed < SEEDS:
                raise UserError(f'seed is {seed}; wanted a whole number from 0 to {SEEDS - 1}')
        numbers = job.sampling.traced(job.schedule)
        settings = job.sampling.static(job.schedule, self._quantization)
        count = len(job.seeds)
        size = self._batch_size(count)
        # One shape, one compilation: the last batch is filled up with its last image.
        batches = [
            [min(i, count - 1) for i in range(start, start + size)]
            for start in range(0, count, size)
        ]
        texts = self._texts(job, batches, settings.guided)
        for rows, (text, negative_text) in zip(batches, texts, strict=True):
            of_rows = np.array([job.seeds[i] for i in rows])
            seeds_B = share_batch(of_rows[:, 0].astype(np.uint32), self._mesh)
            indices_B = share_batch(of_rows[:, 1], self._mesh)
            given = None
            if job.sources is not None:
                given = share_batch(job.sources.rows([i // job.num for i in rows]), self._mesh)
            inputs = GenerationInputs(
                image_keys(seeds_B, indices_B), text, numbers, negative_text, given
            )
            pixels = self._generator(inputs, settings)
            on_host = pixels if self._mesh is None else to_host(pixels, self._mesh)
            yield np.asarray(on_host)[: count - rows[0]]

    def _texts(
        self, job: GenerationJob, batches: Sequence[Sequence[int]], guided: bool
    ) -> Iterator[Pair]:
        """The encoded prompts of each batch, and what replaces the unconditional text if any."""
        negative = None if job.negative is None or is_blank(job.negative) else job.negative
        if negative is not None and not guided:
            warnings.warn('the negative prompt has no effect: guidance is 1', stacklevel=4)
            negative = None
        texts_read = [*job.prompts, *(job.source_prompts or ()), *([negative] if negative else ())]
        rewritten = {text: self._rewrite(text) for text in dict.fromkeys(texts_read)}
        self._prompt_encoder.warn_of_losses([*rewritten.values()])
        shared = 1 if self._mesh is not None else math.gcd(job.num, len(batches[0]))

        def encoded(prompts: Sequence[str]) -> Iterable[Pair]:
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
        images: Source | EditSource | Sequence[Source | EditSource],
        prompts: str | Sequence[str],
        *,
        masks: Source | Sequence[Source | None] | None = None,
        source_prompts: str | Sequence[str] | None = None,
        editing: EditConfig = EditConfig(),
        num: int = 1,
        seed: int = 0,
        negative: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
    ) -> EditedImages:
        """Edits images: inpainting, outpainting, variation, and editing by words.

        With a mask, what it covers is generated and the rest is kept; without one the first scales
        are kept (`editing.strength`); with source prompts every bit is kept that the prompt does
        not make much less likely than the source prompt does. For outpainting put the image on a
        larger canvas with `edit_masks.extend`, which returns the mask as well.

        Masks, strengths, tolerances and seeds compile nothing. A source may have any size: it is
        resized to the model's, stretched where the shapes differ, and the result to its own. Image
        i has the random key of (seed, i), as in generation.

        Args:
          images: one or several: paths, encoded images, PIL images, uint8 arrays (Y, X, 3), or
            `EditSource`s, which have their masks already.
          prompts: what the results should show; one for all images, or one for each.
          masks: white, or transparent, where the model generates; one for each image or None.
          source_prompts: what the images show, for editing by words.
          editing: strength, tolerance, compositing.
          num: results per image.
          seed, negative, sampling: as in generation.

        Raises:
          UserError: an image or mask that cannot be read, arguments of different lengths, or
            settings that do not fit.
        """
        sources = sources_of(images, masks)
        others = None
        if source_prompts is not None:
            others = one_each(source_prompts, len(sources), 'source prompts')
        return self._editor(
            sources,
            one_each(prompts, len(sources), 'prompts'),
            others,
            editing,
            num,
            seed,
            negative,
            sampling,
            self.schedule,
        )

    def reconstruct(self, image: Source, *, scales: int | None = None) -> np.ndarray:
        """An image through the tokenizer and back: what the model sees of it.

        Args:
          image: as in `edit`.
          scales: the number of first scales whose bits are used; None: all.

        Returns:
          uint8 (Y, X, 3), at the size of the image.

        Raises:
          UserError: an image that cannot be read, or a number of scales that there is not.
        """
        (source,) = sources_of(image, None)
        schedule = schedule_for(source.size, self.schedule)
        if scales is not None and not 1 <= scales <= len(schedule):
            raise UserError(f'scales is {scales}; wanted 1 to {len(schedule)}')
        features = self._editor.features([source], schedule) * self._batch_size(1)
        rows = share_batch(np.stack(features), self._mesh)
        grids = schedule.code_grids(self._patchify)
        total = source_codes(rows, grids, len(schedule) if scales is None else scales)
        if self._mesh is None:
            pixels = np.asarray(self._generator.decode(total))
        else:
            decode = in_mesh(self._mesh, self._generator.decode)
            pixels = to_host(decode(total), self._mesh)
        return resized(pixels[0], source.size)

    def _batch_size(self, images: int) -> int:
        """Images per program call: a multiple of the mesh's shares of a batch."""
        shares = 1
        if self._mesh is not None:
            shares = self._mesh.shape['data'] * self._mesh.shape['fsdp']
        return -(-min(images, self._max_batch) // shares) * shares
