"""Runs edits: sources are encoded, grouped by what is compiled in, generated and finished."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np

from infinity_jax.config import pixels_per_token, required
from infinity_jax.errors import UserError
from infinity_jax.inference.edit import Edit, EditedImages, GivenSources, ReadEdit, schedule_for
from infinity_jax.inference.executables import Executables
from infinity_jax.inference.generator import Generator
from infinity_jax.inference.job import GenerationJob
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.source_encoder import SourceEncoder
from infinity_jax.inference.source_images import Source, read_image, resized
from infinity_jax.scales import Grid, ScaleSchedule
from infinity_jax.weights.placement import PlacedModel

STRETCH_WARNING = 1.25  # sources whose shape is changed by more are named in a warning

Seeds = Sequence[tuple[int, int]]


class ImageEditor:
    """The part of a pipeline that edits images."""

    def __init__(
        self,
        model: PlacedModel,
        schedule: ScaleSchedule,
        generator: Generator,
        run: Callable[[GenerationJob], Iterator[np.ndarray]],
        executables: Executables | None = None,
    ):
        """Takes a pipeline's model.

        Args:
          model: with its weights in place.
          schedule: the pipeline's token grids.
          generator: for its decoder.
          run: generates a job's images in batches.
          executables: the store of compiled programs; None: nothing is stored.
        """
        transformer = required(model.configs.transformer, 'transformer')
        tokenizer = required(model.configs.tokenizer, 'tokenizer')
        self._encoder = SourceEncoder(tokenizer, model.read_tokenizer, model.mesh, executables)
        self._schedule, self._generator, self._run = schedule, generator, run
        self._stride = pixels_per_token(transformer, tokenizer)
        self._patchify = transformer.spatial_patchify
        self._classifier = transformer.classifier

    def edit(
        self,
        edits: Sequence[Edit],
        seeds: Seeds,
        *,
        num: int = 1,
        negative: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
    ) -> EditedImages:
        """`InfinityPipeline.edit`, with the (seed, index) of each image.

        Edits of one schedule, by words or not, are generated in the same batches.

        Raises:
          UserError: the model's classifier does not predict bits.
        """
        if self._classifier != 'bits':
            raise UserError(
                f'transformer.classifier of this model is {self._classifier!r}; editing compares '
                "single bits and wants a model with 'bits'"
            )
        by_words = [edit.source_prompt is not None for edit in edits]
        if any(by_words):
            check_words(sampling, negative)
        read = [edit.read() for edit in edits]
        kinds = [
            (schedule_for(each.size, self._schedule), words)
            for each, words in zip(read, by_words, strict=True)
        ]
        pixels: dict[int, np.ndarray] = {}
        for kind in dict.fromkeys(kinds):
            group = [i for i, other in enumerate(kinds) if other == kind]
            images = [i * num + j for i in group for j in range(num)]
            job = GenerationJob(
                [edits[i].prompt for i in group],
                [seeds[image] for image in images],
                kind[0],
                num,
                sampling,
                negative,
                self._given([read[i] for i in group], kind[0]),
                [edits[i].source_prompt or '' for i in group] if kind[1] else None,
            )
            batches = list(self._run(job))
            generated = [image for batch in batches for image in batch]
            of_each = [read[image // num] for image in images]
            self._reencode(generated, of_each, kind[0], len(batches[0]))
            for image, each, generated_YX3 in zip(images, of_each, generated, strict=True):
                pixels[image] = each.finish(generated_YX3)
        return EditedImages(
            tuple(pixels[i] for i in range(len(edits) * num)),
            tuple(edit.prompt for edit in edits for _ in range(num)),
            tuple(seeds),
        )

    def reconstruct(self, image: Source, scales: int | None = None) -> np.ndarray:
        """See `InfinityPipeline.reconstruct`."""
        read = ReadEdit(Edit(image, ''), read_image(image), None)
        schedule = schedule_for(read.size, self._schedule)
        scales = len(schedule) if scales is None else scales
        if not 1 <= scales <= len(schedule):
            raise UserError(f'scales is {scales}; wanted 1 to {len(schedule)}')
        features = self._features([read], schedule)
        (pixels,) = self._decoded(features, schedule.code_grids(self._patchify), scales)
        return read.finish(pixels)

    def _reencode(
        self,
        generated: list[np.ndarray],
        read: Sequence[ReadEdit],
        schedule: ScaleSchedule,
        batch: int,
    ) -> None:
        """Replaces generated images by the reconstructions of their composites, where wanted.

        Bits of the source outside of the mask do not keep its pixels: the decoder reads codes next
        to them, which were generated. The codes of a composite fit each other.

        Args:
          generated: uint8 (Y, X, 3), of the model's size.
          read: the edit of each.
          schedule: of all of them.
          batch: images that are decoded at the same time.
        """
        grids = schedule.code_grids(self._patchify)
        chosen = [i for i, each in enumerate(read) if each.is_reencoded(grids)]
        if not chosen:
            return
        size = schedule.image_size(self._stride)
        features = self._encoder([resized(read[i].composited(generated[i]), size) for i in chosen])
        decoded = self._decoded(features, grids, len(grids), batch)
        for i, pixels in zip(chosen, decoded, strict=True):
            generated[i] = pixels

    def _decoded(
        self, features: Sequence[np.ndarray], grids: tuple[Grid, ...], scales: int, batch: int = 1
    ) -> list[np.ndarray]:
        """Images, uint8 (Y, X, 3), of the first scales of encoded images, `batch` at a time."""
        shares, last, decoded = self._encoder.shares, len(features) - 1, list[np.ndarray]()
        batch = -(-batch // shares) * shares
        for start in range(0, len(features), batch):
            # Filled up with the last one: one shape, one compilation.
            rows = [features[min(i, last)] for i in range(start, start + batch)]
            decoded += list(self._generator.decoded(self._encoder.codes(rows, grids, scales)))
        return decoded[: len(features)]

    def _given(self, read: Sequence[ReadEdit], schedule: ScaleSchedule) -> GivenSources:
        features = self._features(read, schedule)
        return GivenSources(features, read, schedule.code_grids(self._patchify))

    def _features(self, read: Sequence[ReadEdit], schedule: ScaleSchedule) -> list[np.ndarray]:
        """Features (h, w, d) of the sources, resized to the images of this schedule."""
        size = schedule.image_size(self._stride)
        stretched = [each.size for each in read if stretch(each.size, size) > STRETCH_WARNING]
        if stretched:
            (height, width), (to_height, to_width) = stretched[0], size
            warnings.warn(
                f'{len(stretched)} of {len(read)} images are stretched to the shape that the model '
                f'generates: {width} x {height} pixels to {to_width} x {to_height}; crop or extend '
                'them first',
                stacklevel=4,
            )
        return self._encoder([resized(each.pixels_YX3, size) for each in read])


def stretch(size: tuple[int, int], target: tuple[int, int]) -> float:
    """The factor, 1 or more, by which resizing to the target changes height over width."""
    factor = size[0] * target[1] / (size[1] * target[0])
    return max(factor, 1 / factor)


def check_words(sampling: SamplingConfig, negative: str | None) -> None:
    """Raises `UserError` where the settings leave editing by words without its two texts."""
    if negative is not None:
        raise UserError(
            'both a negative and a source prompt are given; guidance leads away from the source '
            'prompt: give one of them'
        )
    guidance = cast(tuple[float, ...], sampling.guidance)  # a tuple, once made
    if sampling.guidance_layer or sampling.unguided_scales or set(guidance) == {1}:
        raise UserError(
            'editing by words compares two prompts at every scale: wanted guidance other than 1 on '
            'the logits (guidance_layer 0) and no unguided scales'
        )
