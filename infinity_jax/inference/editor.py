"""Runs edits on a pipeline: sources are encoded, grouped by shape, generated and finished."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.inference.edit import (
    STRETCH_WARNING,
    EditConfig,
    EditedImages,
    EditSource,
    GivenSources,
    edit_source,
    finished,
    schedule_for,
)
from infinity_jax.inference.job import GenerationJob
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.source_encoder import SourceEncoder
from infinity_jax.inference.source_images import resized
from infinity_jax.scales import ScaleSchedule


class ImageEditor:
    """The part of a pipeline that edits images."""

    def __init__(
        self,
        encoder: SourceEncoder,
        run: Callable[[GenerationJob], Iterator[np.ndarray]],
        stride: int,
        patchify: bool,
    ):
        """Takes the pipeline's parts.

        Args:
          encoder: of source images.
          run: generates a job's images in batches.
          stride: pixels per token along an edge.
          patchify: whether 2×2 codes are one token.
        """
        self._encoder, self._run = encoder, run
        self._stride, self._patchify = stride, patchify

    def __call__(
        self,
        sources: Sequence[EditSource],
        prompts: Sequence[str],
        source_prompts: Sequence[str] | None,
        editing: EditConfig,
        num: int,
        seed: int,
        negative: str | None,
        sampling: SamplingConfig,
        own: ScaleSchedule,
    ) -> EditedImages:
        """See `InfinityPipeline.edit`; the prompts are one per source, `own` is its schedule."""
        if source_prompts is not None:
            check_words(sampling, negative)
        schedules = [schedule_for(source.size, own) for source in sources]
        pixels: dict[int, np.ndarray] = {}
        for schedule in dict.fromkeys(schedules):
            group = [i for i, each in enumerate(schedules) if each == schedule]
            images = [i * num + j for i in group for j in range(num)]
            of_group = [sources[i] for i in group]
            job = GenerationJob(
                [prompts[i] for i in group],
                [(seed, image) for image in images],
                schedule,
                num,
                sampling,
                negative,
                self.given(of_group, schedule, editing, source_prompts is not None),
                None if source_prompts is None else [source_prompts[i] for i in group],
            )
            generated = (image for batch in self._run(job) for image in batch)
            for image, generated_YX3 in zip(images, generated, strict=True):
                pixels[image] = finished(sources[image // num], generated_YX3, editing)
        count = len(sources) * num
        return EditedImages(
            tuple(pixels[i] for i in range(count)),
            tuple(prompt for prompt in prompts for _ in range(num)),
            tuple((seed, i) for i in range(count)),
        )

    def given(
        self,
        sources: Sequence[EditSource],
        schedule: ScaleSchedule,
        editing: EditConfig,
        by_words: bool,
    ) -> GivenSources:
        """Encodes sources for a job with this schedule."""
        features = self.features(sources, schedule)
        grids = schedule.code_grids(self._patchify)
        return GivenSources(features, sources, grids, editing, by_words)

    def features(self, sources: Sequence[EditSource], schedule: ScaleSchedule) -> list[np.ndarray]:
        """Features (h, w, d) of the sources, resized to the images of this schedule."""
        size = schedule.image_size(self._stride)
        stretched = [
            source.size for source in sources if _stretch(source.size, size) > STRETCH_WARNING
        ]
        if stretched:
            (height, width), (to_height, to_width) = stretched[0], size
            warnings.warn(
                f'{len(stretched)} of {len(sources)} images are stretched to the shape that the '
                f'model generates: {width} x {height} pixels to {to_width} x {to_height}; crop or '
                'extend them first',
                stacklevel=4,
            )
        return self._encoder([resized(source.pixels_YX3, size) for source in sources])


def _stretch(size: tuple[int, int], target: tuple[int, int]) -> float:
    ratio = size[0] * target[1] / (size[1] * target[0])
    return max(ratio, 1 / ratio)


def check_words(sampling: SamplingConfig, negative: str | None) -> None:
    """Raises `UserError` where the settings leave editing by words without its two texts."""
    if negative is not None:
        raise UserError(
            'both a negative and a source prompt are given; guidance leads away from the source '
            'prompt: give one of them'
        )
    if sampling.guidance_layer or sampling.unguided_scales or 1 in sampling.guidance:
        raise UserError(
            'editing by words compares two prompts at every scale: wanted guidance other than 1 on '
            'the logits (guidance_layer 0) and no unguided scales'
        )


def sources_of(images: Any, masks: Any) -> list[EditSource]:
    """Reads one image or several, with their masks; see `InfinityPipeline.edit`."""
    several = isinstance(images, Sequence) and not isinstance(images, str | bytes)
    listed = list(images) if several else [images]
    if masks is None:
        masks = [None] * len(listed)
    elif not (isinstance(masks, Sequence) and not isinstance(masks, str | bytes)):
        masks = [masks]
    if not listed or len(masks) != len(listed):
        raise UserError(f'{len(listed)} images and {len(masks)} masks are given; wanted one each')
    return [
        image if isinstance(image, EditSource) else edit_source(image, mask)
        for image, mask in zip(listed, masks, strict=True)
    ]


def one_each(texts: str | Sequence[str], count: int, name: str) -> list[str]:
    """One text for each of `count` images, of which all may have the same."""
    listed = [texts] * count if isinstance(texts, str) else list(texts)
    if len(listed) != count:
        raise UserError(f'{len(listed)} {name} for {count} images; wanted one, or one for each')
    return listed
