"""Generates the images of a benchmark that are not there yet, and nothing else."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from infinity_jax.data.decode import decode
from infinity_jax.data.records import BrokenRecord, open_file
from infinity_jax.errors import UserError
from infinity_jax.inference.job import GenerationJob
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.inference.warmup import GenerationRequest
from infinity_jax.tools.evaluation.benchmarks.image_files import (
    ImageWriter,
    grid,
    has_text,
    is_whole,
)
from infinity_jax.tools.evaluation.benchmarks.layout import Item
from infinity_jax.tools.evaluation.benchmarks.plan import Plan
from infinity_jax.tools.evaluation.benchmarks.settings import PER_IMAGE, claim


def generate_missing(plan: Plan, settings: Mapping[str, Any]) -> int:
    """Generates what is missing; returns the number of new images of this process.

    Raises:
      UserError: the folder belongs to another run, or nothing can be written there.
    """
    process, processes = jax.process_index(), jax.process_count()
    if process == 0:
        claim(plan.out, settings)
    if processes > 1:
        multihost_utils.sync_global_devices('run.json is written')
        if process > 0:
            claim(plan.out, settings)
    items, num = plan.benchmark.items, plan.benchmark.num
    groups = plan.groups(process, processes)
    missing = [group for group in groups if not all(plan.is_complete(items[i]) for i in group)]
    total, todo = (num * sum(map(len, each)) for each in (groups, missing))
    with ImageWriter(plan.out) as writer:
        if process == 0:
            for name, text in plan.benchmark.texts:
                if not has_text(plan.out / name, text):
                    writer.text(name, text)
        _copy_originals(plan, groups, writer)
        if missing:
            pipeline = _load(plan, missing[0])
            with (
                tqdm(
                    desc=plan.benchmark.name,
                    total=total,
                    initial=total - todo,
                    unit=' images',
                    smoothing=0.1,
                    disable=None if process == 0 else True,
                ) as bar,
                warnings.catch_warnings(),
            ):
                warnings.simplefilter('ignore')  # of single groups: _load warned of all prompts
                for group in missing:
                    pixels = _pixels(plan, pipeline, group)
                    writer.wait()  # the files of the group before, written meanwhile
                    for i, images in zip(group, pixels, strict=True):
                        _write(plan, items[i], images, writer)
                    bar.update(num * len(group))
    return todo


def _load(plan: Plan, first: range) -> InfinityPipeline:
    options = plan.options
    request = GenerationRequest(
        tuple(_texts(plan, first)), num=plan.benchmark.num, sampling=options.sampling
    )
    pipeline = InfinityPipeline.from_pretrained(
        plan.folder,
        mesh=options.mesh,
        quantization=options.quantization,
        max_batch=plan.images_at_once,
        text_length=options.text_length,
        guided=options.sampling.guided,
        request=request,
        **options.model,
    )
    if pipeline.max_batch < plan.images_at_once:
        raise UserError(
            f'{pipeline.max_batch} images fit into memory at once; this run began with '
            f'{plan.images_at_once}: free memory, or start again with another --out'
        )
    pipeline.warn_of_losses([plan.text_of(item) for item in plan.benchmark.items])
    return pipeline


def _texts(plan: Plan, group: range) -> list[str]:
    """The texts of a group; the last group is filled up, so that no other program is compiled."""
    items = plan.benchmark.items
    texts = [plan.text_of(items[i]) for i in group]
    return texts + texts[-1:] * (plan.prompts_at_once - len(group))


def _pixels(plan: Plan, pipeline: InfinityPipeline, group: range) -> np.ndarray:
    """The images of each prompt of a group, uint8 (prompts, num, Y, X, 3)."""
    num, options = plan.benchmark.num, plan.options
    indices = np.tile(np.arange(num), plan.prompts_at_once)
    if options.seeds == PER_IMAGE:
        indices = np.arange(plan.prompts_at_once * num) + group.start * num
    seeds = [(options.seed, int(index)) for index in indices]
    job = GenerationJob(_texts(plan, group), seeds, pipeline.schedule, num, options.sampling)
    pixels = np.concatenate(list(pipeline.run(job)))
    return pixels.reshape(plan.prompts_at_once, num, *pixels.shape[1:])[: len(group)]


def _write(plan: Plan, item: Item, images: np.ndarray, writer: ImageWriter) -> None:
    """Writes the files of a prompt that are not there."""
    for name, text in item.texts:
        if not has_text(plan.out / name, text):
            writer.text(name, text)
    files = [grid(images)] if plan.benchmark.is_grid else images
    for name, pixels in zip(item.files, files, strict=True):
        if not is_whole(plan.out / name, plan.file_size):
            writer.image(name, pixels)


def _copy_originals(plan: Plan, groups: Sequence[range], writer: ImageWriter) -> None:
    """Writes the true images of captions at the size of the generated ones, as training does.

    Raises:
      UserError: one cannot be read.
    """
    for group in groups:
        for i in group:
            original = plan.benchmark.items[i].original
            if original is None or is_whole(plan.out / original[1], plan.image_size):
                continue
            try:
                writer.image(original[1], decode(open_file(original[0]), plan.image_size))
            except (OSError, BrokenRecord) as error:
                raise UserError(
                    f'{original[0]}: not a readable image ({error}); repair it, or remove its line'
                ) from None
        writer.wait()
