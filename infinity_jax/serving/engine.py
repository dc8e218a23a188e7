"""A loaded model that generates batches of images, each with its own seed, for a server."""

import contextlib
import pathlib
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from infinity_jax.config import QuantizationConfig, pixels_per_token, required
from infinity_jax.errors import UserError
from infinity_jax.inference.edit import GivenSources, ReadEdit, schedule_for
from infinity_jax.inference.generator import Generator, image_keys
from infinity_jax.inference.given_bits import GivenBits
from infinity_jax.inference.loading import ReadyModel, load_for_generation, read_for_generation
from infinity_jax.inference.resolution import choose_schedule
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.scale_steps import GenerationInputs, Text
from infinity_jax.inference.source_encoder import SourceEncoder
from infinity_jax.inference.source_images import resized
from infinity_jax.inference.text_encoder import PromptEncoder
from infinity_jax.runtime.hub import local_folder
from infinity_jax.scales import ScaleSchedule, released_name
from infinity_jax.serving.batch_sizes import BatchSizes
from infinity_jax.serving.tasks import BatchGroup, ImageTask
from infinity_jax.sharding import target_platform

BATCH_SIZES = (2, 4, 8)  # on a CPU, products of a single row round differently: 1 would stand alone
AT_ONCE_ON_CPU = 2  # batches of a small model; a third one gains nothing on two cores


class Dropped(Exception):
    """Nobody waits for any image of a batch."""


class Engine:
    """Generates batches of images.

    On a CPU, a program of a small model does not keep all cores busy, and a second batch at the
    same time costs the first one little. Everywhere else programs would take each other's time.

    Attributes:
      sizes: the batch sizes, and which of them may be used.
      at_once: threads that may call it, or its other methods, at the same time.
    """

    def __init__(self, ready: ReadyModel, sizes: Sequence[int] = BATCH_SIZES):
        """Takes a loaded model on one device.

        Args:
          ready: of `load_for_generation`.
          sizes: batch sizes to compile, rising; those that do not fit into memory are left out.

        Raises:
          UserError: not even the smallest size fits.
        """
        model = ready.model
        fitting = [size for size in sizes if size <= ready.batch]
        if not fitting:
            raise UserError(
                f'batch sizes are {list(sizes)}; {ready.batch} images fit into memory: name a '
                'smaller size'
            )
        self.sizes = BatchSizes(fitting)
        self._comparing = threading.Lock()
        self.configs, self._quantization = model.configs, model.quantization
        self._generator = Generator.of_model(model, ready.executables)
        several = target_platform() == 'cpu' and not self._generator.layerwise
        fit = AT_ONCE_ON_CPU * self.sizes.largest <= ready.batch
        self.at_once = AT_ONCE_ON_CPU if several and fit else 1
        self._encode = PromptEncoder(model, None, ready.executables)
        self._transformer = required(model.configs.transformer, 'transformer')
        self._tokenizer = required(model.configs.tokenizer, 'tokenizer')
        self._encode_sources = SourceEncoder(
            self._tokenizer, model.read_tokenizer, executables=ready.executables
        )

    @classmethod
    def load(
        cls,
        name: str | pathlib.Path,
        *,
        revision: str | None = None,
        sizes: Sequence[int] = BATCH_SIZES,
        quantization: QuantizationConfig = QuantizationConfig(),
        adapters: Sequence[str] = (),
        **options: Any,
    ) -> 'Engine':
        """Loads a model folder.

        Args:
          name: folder, or org/name on the Hugging Face hub.
          revision: on the hub.
          sizes: see the constructor.
          quantization, adapters: see `load_for_generation`.
          options: those of `loading.read_for_generation`.
        """
        folder = local_folder(name, revision)
        configs = read_for_generation(folder, **options)
        batch = max(sizes) * (AT_ONCE_ON_CPU if target_platform() == 'cpu' else 1)
        ready = load_for_generation(
            folder, configs, max_batch=batch, quantization=quantization, adapters=adapters
        )
        return cls(ready, sizes)

    @property
    def settings(self) -> dict[str, str]:
        """Dtypes, and precision of weights, cache and decoder, on which images depend as well."""
        return {
            'dtype': self._transformer.dtype,
            'text_dtype': self.configs.text_products,
            'weights': self._quantization.weights,
            'cache': self._quantization.cache,
            'decoder': self._generator.decoder_precision,
        }

    @property
    def schedule(self) -> ScaleSchedule:
        """The token grids of images of no requested size."""
        return required(self.configs.schedule, 'schedule')

    @property
    def own_grids(self) -> bool:
        """Whether the model has grids of its own, and so no other image size."""
        return released_name(self.schedule) is None

    def image_size(self, schedule: ScaleSchedule) -> tuple[int, int]:
        """(height, width) in pixels of images of these grids."""
        return schedule.image_size(pixels_per_token(self._transformer, self._tokenizer))

    def choose_schedule(self, **size: Any) -> ScaleSchedule:
        """The token grids of a requested size, see `resolution.choose_schedule`.

        Raises:
          UserError: the model cannot generate it, or it is larger than the model's own size, for
            which memory was planned.
        """
        schedule = choose_schedule(self.configs, **size)
        height, width = self.image_size(schedule)
        own_height, own_width = self.image_size(self.schedule)
        if len(schedule) > len(self.schedule):
            raise UserError(
                f'an image of {width} x {height} pixels is larger than this server generates; '
                f'wanted about {own_width} x {own_height} pixels at most, in any shape'
            )
        return schedule

    def __call__(self, tasks: Sequence[ImageTask]) -> list[np.ndarray]:
        """Generates images of one group, as many as the largest batch size at most.

        Images that fill a size which was never used are generated in the smallest size as well,
        and these are returned: the size is used from then on if its bytes are the same.

        Returns:
          uint8 (Y, X, 3) each.

        Raises:
          Dropped: all tasks were dropped meanwhile.
          UserError: settings that do not fit the model.
        """
        program = self._program(tasks[0].group)
        if self.sizes.untried(program, len(tasks)) is not None:
            with self._comparing:
                generated = self._with_comparison(program, tasks)
        else:
            generated = self._in_batches(tasks, self.sizes.fitting(program, len(tasks)))
        return [pixels for _, pixels in generated]

    def given(self, read: ReadEdit) -> tuple[ScaleSchedule, GivenBits]:
        """The token grids of an edit's images, and the bits of its source, of one image.

        Raises:
          UserError: the model has no encoder.
        """
        schedule = schedule_for(read.size, self.schedule)
        grids = schedule.code_grids(self._transformer.spatial_patchify)
        return schedule, GivenSources([self._features(read, schedule)], [read], grids).rows([0])

    def reconstructions(self, read: ReadEdit) -> list[tuple[int, np.ndarray]]:
        """A source after 1 to all scales: the bits so far, and the image at the source's size."""
        schedule = schedule_for(read.size, self.schedule)
        grids = schedule.code_grids(self._transformer.spatial_patchify)
        features, bits, shown = self._features(read, schedule), 0, []
        for scales, (h, w) in enumerate(grids, 1):
            bits += h * w * self._transformer.bits
            total = self._encode_sources.codes([features], grids, scales)
            shown.append((bits, read.finish(self._generator.decoded(total)[0])))
        return shown

    def _features(self, read: ReadEdit, schedule: ScaleSchedule) -> np.ndarray:
        """Encoder output (h, w, d) of a source, resized to the images of this schedule."""
        pixels = resized(read.pixels_YX3, self.image_size(schedule))
        return self._encode_sources([pixels])[0]

    def warm_up(self, group: BatchGroup, report: Callable[[str], None] = lambda line: None) -> None:
        """Compiles and compares all batch sizes of a group, before the first request."""
        negative = 'text' if group.negative else None
        prompts = ['a red apple', 'a blue house', 'a cat', 'two dogs on a green hill']
        for size in self.sizes.sizes:
            tasks = [
                ImageTask(group, prompts[i % len(prompts)], 1, i, negative) for i in range(size)
            ]
            self(tasks)
        equal = self.sizes.equal(self._program(group))
        report(f'batch sizes that generate the same bytes: {", ".join(map(str, equal))}')

    def _program(self, group: BatchGroup) -> tuple[Any, bool, bool]:
        """What is compiled in, apart from the batch size."""
        settings = group.sampling.static(group.schedule, self._quantization)
        return settings, group.negative, group.edits

    def _with_comparison(
        self, program: Any, tasks: Sequence[ImageTask]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """`_in_batches`, which tries a size unless another thread has just done so."""
        untried = self.sizes.untried(program, len(tasks))
        if untried is None:
            return self._in_batches(tasks, self.sizes.fitting(program, len(tasks)))
        generated = self._in_batches(tasks, self.sizes.smallest)
        with contextlib.suppress(Dropped):  # the images are there already
            compared = self._in_batches(tasks[:untried], untried, previews=False)
            self._compare(program, untried, generated, compared)
        return generated

    def _compare(self, program: Any, size: int, expected: list, found: list) -> None:
        equal = all(
            np.array_equal(codes, other) and np.array_equal(pixels, other_pixels)
            for (codes, pixels), (other, other_pixels) in zip(expected, found, strict=False)
        )
        self.sizes.record(program, size, equal)
        if not equal:
            print(
                f'batch size {size} generates other bytes than {self.sizes.smallest}; it is not '
                'used',
                file=sys.stderr,
            )

    def _in_batches(
        self, tasks: Sequence[ImageTask], size: int, previews: bool = True
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Codes and pixels of each image, generated `size` at a time."""
        generated: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(tasks), size):
            generated += self._batch(tasks, start, size, previews)
        return generated

    def _batch(
        self, of: Sequence[ImageTask], start: int, size: int, previews: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """One program call for the tasks from `start` on; filled up with its last image."""
        tasks = of[start : start + size]
        group, count = tasks[0].group, len(tasks)
        rows = [tasks[min(i, count - 1)] for i in range(size)]
        inputs = GenerationInputs(
            image_keys(np.array([(task.seed, task.index) for task in rows], np.uint32)),
            self._text([task.prompt for task in rows]),
            group.sampling.traced(group.schedule),
            self._text([task.negative or '' for task in rows]) if group.negative else None,
            _stacked([task.given for task in rows]) if group.edits else None,
        )
        last = len(group.schedule) - 1

        def on_scale(scale: int, total_Bhwd: jax.Array) -> None:
            if all(task.dropped for task in of):  # else others would fail with these
                raise Dropped
            watched = [i for i, task in enumerate(tasks) if scale in task.preview_scales]
            if previews and watched and scale < last:
                pixels = np.asarray(self._generator.decode(total_Bhwd))
                for i in watched:
                    tasks[i].on_preview(scale, pixels[i])

        settings = group.sampling.static(group.schedule, self._quantization)
        total = self._generator.codes_by_scale(inputs, settings, on_scale)
        pixels = np.asarray(self._generator.decode(total))
        return list(zip(np.asarray(total)[:count], pixels[:count], strict=True))

    def _text(self, prompts: list[str]) -> Text:
        ((text, _),) = self._encode([prompts], None)
        return text


def _stacked(given: Sequence[GivenBits | None]) -> GivenBits:
    """Given bits of one image each as those of a batch."""
    each = [bits for bits in given if bits is not None]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *each)


def default_group(engine: Engine, sampling: SamplingConfig = SamplingConfig()) -> BatchGroup:
    """The group of requests that ask for nothing in particular."""
    return BatchGroup(engine.schedule, sampling)
