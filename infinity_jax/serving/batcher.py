"""Puts requests together: images of one group that wait at the same time share a batch."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from infinity_jax.serving.api_error import ApiError
from infinity_jax.serving.tasks import ImageTask

Run = Callable[[Sequence[ImageTask]], list[np.ndarray]]


@dataclasses.dataclass(eq=False)
class _Waiting:
    """An image in the queue."""

    task: ImageTask
    ready: asyncio.Future[np.ndarray]
    arrived: float


class Batcher:
    """A bounded queue in front of one model. All methods belong to one event loop."""

    def __init__(
        self,
        run: Run,
        largest: int,
        executor: Executor,
        *,
        most_waiting: int,
        wait_s: float,
        at_once: int = 1,
        on_batch: Callable[[int, float], None] = lambda images, seconds: None,
    ):
        """Takes the model.

        Args:
          run: generates tasks of one group, on a thread of `executor`.
          largest: tasks per call of `run`, at most.
          executor: of the threads that run batches, for all models on the device.
          most_waiting: images in the queue, at most.
          wait_s: for which an image waits for others, if it could start.
          at_once: batches that run at the same time, at most.
          on_batch: called with the images and seconds of every batch.
        """
        self._run, self._largest, self._executor = run, largest, executor
        self._most_waiting, self._wait_s, self._on_batch = most_waiting, wait_s, on_batch
        self._at_once, self._room = at_once, asyncio.Semaphore(at_once)
        self._running: set[asyncio.Task[None]] = set()
        self._queue: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._last_s = 1.0  # seconds that the last batch took
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._queue)

    def check_room(self, images: int) -> None:
        """Raises `ApiError` if the queue has no room for so many images."""
        if len(self._queue) + images > self._most_waiting:
            batches = 1 + len(self._queue) // (self._largest * self._at_once)
            raise ApiError(
                f'{len(self._queue)} images are waiting, {self._most_waiting} at most; try again '
                'later',
                429,
                code='queue_full',
                retry_after=max(1, round(batches * self._last_s)),
            )

    async def generate(self, tasks: Sequence[ImageTask]) -> list[np.ndarray]:
        """The images of a request, uint8 (Y, X, 3). A cancelled call drops its tasks.

        Raises:
          ApiError: the queue is full.
        """
        self.check_room(len(tasks))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        loop, now = asyncio.get_running_loop(), time.monotonic()
        entries = [_Waiting(task, loop.create_future(), now) for task in tasks]
        self._queue += entries
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(entry.ready for entry in entries)))
        finally:
            for entry in entries:
                entry.task.dropped = True  # or finished: nothing reads it any longer
                entry.ready.cancel()
            self._queue = [entry for entry in self._queue if not entry.task.dropped]

    async def close(self) -> None:
        """Ends the worker; images that still wait are not generated."""
        tasks = [task for task in (self._worker, *self._running) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await self._room.acquire()  # images that arrive meanwhile join the batch
            if self._queue and len(self._next()) < self._largest:
                age = time.monotonic() - self._queue[0].arrived
                if age < self._wait_s:
                    await asyncio.sleep(self._wait_s - age)
            batch = self._next()
            self._queue = [entry for entry in self._queue if entry not in batch]
            if not self._queue:
                self._arrived.clear()
            if not batch:
                self._room.release()
                continue
            running = asyncio.create_task(self._generate(batch))
            self._running.add(running)
            running.add_done_callback(self._ended)

    def _ended(self, running: 'asyncio.Task[None]') -> None:
        self._running.discard(running)
        self._room.release()

    def _next(self) -> list[_Waiting]:
        """The oldest image, and others of its group."""
        if not self._queue:
            return []
        group = self._queue[0].task.group
        return [entry for entry in self._queue if entry.task.group == group][: self._largest]

    async def _generate(self, batch: Sequence[_Waiting]) -> None:
        start = time.monotonic()
        tasks = [entry.task for entry in batch]
        try:
            loop = asyncio.get_running_loop()
            images = await loop.run_in_executor(self._executor, self._run, tasks)
        except Exception as error:  # of any kind: the next batch must run all the same
            for entry in batch:
                if not entry.ready.done():
                    entry.ready.set_exception(error)
            return
        self._last_s = time.monotonic() - start
        self._on_batch(len(batch), self._last_s)
        for entry, image in zip(batch, images, strict=True):
            if not entry.ready.done():
                entry.ready.set_result(image)
