"""The models of a server behind their queues: requests in, images or events out."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.inference.edit import ReadEdit
from infinity_jax.inference.editor import check_words
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.serving.api_error import ApiError
from infinity_jax.serving.batcher import Batcher
from infinity_jax.serving.edit_request import PixelRoom
from infinity_jax.serving.encoded import in_base64
from infinity_jax.serving.engine import Engine
from infinity_jax.serving.image_request import ImageRequest, parse_request
from infinity_jax.serving.limits import Limits
from infinity_jax.serving.metrics import Metrics
from infinity_jax.serving.tasks import ImageTask, OnPreview

Shown = tuple[int, int, np.ndarray] | None  # image, scale, pixels; None: no more

Finish = Callable[[np.ndarray], np.ndarray]


def as_generated(pixels_YX3: np.ndarray) -> np.ndarray:
    """The pixels themselves."""
    return pixels_YX3


class Service:
    """Everything of a server but HTTP. Its coroutines belong to one event loop."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        *,
        sampling: SamplingConfig = SamplingConfig(),
        limits: Limits = Limits(),
    ):
        """Takes the loaded models.

        Args:
          engines: by name; the first is the default.
          sampling: of requests that do not set it.
          limits: of requests and of the queue of each model.
        """
        self.engines, self.sampling, self.limits = engines, sampling, limits
        self.metrics, self.room = Metrics(), PixelRoom(limits.held_pixels)
        self.started = int(time.time())
        # The threads call any of the models, so no more of them than each of these allows.
        at_once = min(engine.at_once for engine in engines.values())
        self.device = ThreadPoolExecutor(at_once, 'device')
        self.batchers = {
            name: Batcher(
                engine,
                engine.sizes.largest,
                self.device,
                most_waiting=limits.waiting,
                wait_s=limits.batch_wait_s,
                at_once=at_once,
                on_batch=self.metrics.batch,
            )
            for name, engine in engines.items()
        }
        self.metrics.watch_queue(lambda: sum(b.waiting for b in self.batchers.values()))

    async def close(self) -> None:
        """Stops the queues."""
        for batcher in self.batchers.values():
            await batcher.close()
        self.device.shutdown()

    def parse(self, fields: Mapping[str, Any]) -> ImageRequest:
        """Checks a request's fields; see `parse_request`."""
        return parse_request(fields, self.engines, self.sampling, self.limits)

    async def images(self, request: ImageRequest, tasks: Sequence[ImageTask]) -> list[np.ndarray]:
        """The images of a request, uint8 (Y, X, 3).

        Raises:
          ApiError: the queue is full, the time is up, or settings do not fit the model.
        """
        async with self._in_time():
            return await self.batchers[request.model].generate(tasks)

    async def edit(
        self, request: ImageRequest, read: ReadEdit
    ) -> tuple[ImageRequest, list[ImageTask]]:
        """The request with the token grids of its source, and the images to generate.

        Raises:
          ApiError: the queue is full, or settings do not fit this edit.
        """
        other = read.edit.source_prompt
        self.batchers[request.model].check_room(request.count)
        async with self._in_time():
            if other is not None:
                check_words(request.sampling, request.negative)
            given_by = self.engines[request.model].given
            schedule, given = await self._on_device(given_by, read)
        request = dataclasses.replace(request, schedule=schedule)
        return request, request.tasks(given, other)

    async def reconstructions(self, model: str, read: ReadEdit) -> dict[str, Any]:
        """The JSON object with a source after 1 to all scales.

        Raises:
          ApiError: the model cannot do that.
        """
        async with self._in_time():
            shown = await self._on_device(self.engines[model].reconstructions, read)
        files = await asyncio.to_thread(lambda: [in_base64(pixels) for _, pixels in shown])
        data = [
            {'b64_json': file, 'scales': i, 'bits': bits}
            for i, (file, (bits, _)) in enumerate(zip(files, shown, strict=True), 1)
        ]
        size = _size(read.pixels_YX3.shape)
        return {'created': int(time.time()), 'data': data, 'size': size, 'scales': len(data)}

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Ends what runs inside once the time is up; errors become those of the API."""
        limit = self.limits.timeout_s
        try:
            async with asyncio.timeout(limit):
                yield
        except TimeoutError:
            raise ApiError(
                f'no image within {limit:g} s; ask for fewer images or try again later',
                504,
                code='timeout',
            ) from None
        except UserError as error:
            raise ApiError(str(error)) from None

    async def _on_device(self, function: Callable[[ReadEdit], Any], read: ReadEdit) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.device, function, read)

    async def answer(
        self, request: ImageRequest, tasks: Sequence[ImageTask], finish: Finish = as_generated
    ) -> dict[str, Any]:
        """The JSON object with all images of a request; `finish` is applied to each."""
        generated = await self.images(request, tasks)

        def finished() -> dict[str, Any]:
            images = list(map(finish, generated))
            data = [
                {'b64_json': self._file(request, i, pixels), 'seed': request.seed, 'index': i}
                for i, pixels in enumerate(images)
            ]
            return {'created': int(time.time()), 'data': data} | _about(request, images[0])

        return await asyncio.to_thread(finished)

    async def events(
        self,
        request: ImageRequest,
        tasks: Sequence[ImageTask],
        kind: str = 'image_generation',
        finish: Finish = as_generated,
    ) -> AsyncIterator[bytes]:
        """Server-sent events with previews as they come, then with the images.

        What goes wrong before the first image is started is raised at once, not sent as an event.

        Args:
          request: the request.
          tasks: of `request.tasks`; their previews are shown.
          kind: the prefix of the events' types.
          finish: applied to each preview and image.
        """
        loop, shown = asyncio.get_running_loop(), asyncio.Queue[Shown]()

        def preview_of(image: int) -> OnPreview:
            def show(scale: int, pixels_YX3: np.ndarray) -> None:
                loop.call_soon_threadsafe(shown.put_nowait, (image, scale, pixels_YX3))

            return show

        for task in tasks:
            task.preview_scales = frozenset(request.preview_scales)
            task.on_preview = preview_of(task.index)
        job = asyncio.create_task(self.images(request, tasks))
        job.add_done_callback(lambda _: shown.put_nowait(None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the job has joined the queue, or was refused
        if job.done():
            job.result()
        return self._events(request, kind, finish, job, shown.get)

    async def _events(
        self,
        request: ImageRequest,
        kind: str,
        finish: Finish,
        job: 'asyncio.Task[list[np.ndarray]]',
        next_shown: Callable[[], Any],
    ) -> AsyncIterator[bytes]:
        scales = request.preview_scales
        try:
            while (entry := await next_shown()) is not None:
                image, scale, pixels = entry
                fields = {'partial_image_index': scales.index(scale), 'scale': scale + 1}
                pixels = await asyncio.to_thread(finish, pixels)
                yield await self._event(f'{kind}.partial_image', request, image, pixels, fields)
            for image, pixels in enumerate(job.result()):
                pixels = await asyncio.to_thread(finish, pixels)
                yield await self._event(f'{kind}.completed', request, image, pixels, {})
        except ApiError as error:
            yield _sent('error', error.body())
        except Exception:
            yield _sent('error', ApiError('generation failed; see the log', 500).body())
            raise
        finally:
            job.cancel()

    async def _event(
        self,
        kind: str,
        request: ImageRequest,
        image: int,
        pixels_YX3: np.ndarray,
        fields: Mapping[str, Any],
    ) -> bytes:
        file = await asyncio.to_thread(self._file, request, image, pixels_YX3)
        about = _about(request, pixels_YX3) | {'seed': request.seed, 'index': image}
        created = {
            'created_at': int(time.time()),
            'quality': 'auto',
            'scales': len(request.schedule),
        }
        return _sent(kind, {'type': kind, 'b64_json': file, **about, **created, **fields})

    def _file(self, request: ImageRequest, image: int, pixels_YX3: np.ndarray) -> str:
        """An image's file in base64, with the settings of its request and of the model."""
        settings = request.settings() | self.engines[request.model].settings | {'index': image}
        return in_base64(pixels_YX3, request.output_format, request.quality, settings)

    def models(self) -> list[dict[str, Any]]:
        """The models as OpenAI lists them, with what a page has to know of them."""
        return [
            {
                'id': name,
                'object': 'model',
                'created': self.started,
                'owned_by': 'infinity_jax',
                'size': _size(engine.image_size(engine.schedule)),
                'scales': len(engine.schedule),
                'own_grids': engine.own_grids,
                'editing': True,
            }
            for name, engine in self.engines.items()
        ]


def _about(request: ImageRequest, pixels_YX3: np.ndarray) -> dict[str, Any]:
    return {
        'model': request.model,
        'size': _size(pixels_YX3.shape),
        'output_format': request.output_format,
        'background': 'opaque',
    }


def _size(shape: Sequence[int]) -> str:
    """'WIDTHxHEIGHT' of (Y, X, …)."""
    return f'{shape[1]}x{shape[0]}'


def _sent(kind: str, fields: Mapping[str, Any]) -> bytes:
    return f'event: {kind}\ndata: {json.dumps(fields)}\n\n'.encode()
