import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.serving.api_error import ApiError
from infinity_jax.serving.batcher import Batcher
from infinity_jax.serving.tasks import BatchGroup, ImageTask

GRIDS = ScaleSchedule.free(((1, 1), (2, 2)))
GROUP = BatchGroup(GRIDS, SamplingConfig())
OTHER = BatchGroup(GRIDS, SamplingConfig(guidance=5.0))


def task(seed, group=GROUP):
    return ImageTask(group, 'a cat', seed, 0)


class Device:
    """Records its batches; it can be stopped in front of the next one."""

    def __init__(self):
        self.batches, self.free = [], threading.Event()
        self.free.set()

    def __call__(self, tasks):
        self.free.wait(10)
        self.batches.append([task.seed for task in tasks])
        if tasks[0].seed == 666:
            raise RuntimeError('broken')
        return [np.full((1, 1, 3), task.seed, np.uint8) for task in tasks]


def run(test, **options):
    """Runs `test(device, batcher)` in an event loop; batches have four images at most."""
    device = Device()

    async def inside():
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(device, 4, executor, **{'most_waiting': 8, 'wait_s': 0.02} | options)
            try:
                return await asyncio.wait_for(test(device, batcher), 10)
            finally:
                device.free.set()
                await batcher.close()

    return asyncio.run(inside())


def test_requests_that_arrive_together_share_a_batch():
    async def test(device, batcher):
        images = await asyncio.gather(*(batcher.generate([task(i)]) for i in range(4)))
        assert device.batches == [[0, 1, 2, 3]]
        assert [image[0].max() for image in images] == [0, 1, 2, 3]

    run(test)


def test_two_batches_run_at_the_same_time_and_a_third_waits():
    async def test(device, batcher):
        device.free.clear()
        first = asyncio.create_task(batcher.generate([task(i) for i in range(4)]))
        second = asyncio.create_task(batcher.generate([task(i) for i in range(4, 8)]))
        await asyncio.sleep(0.1)
        third = asyncio.create_task(batcher.generate([task(8)]))
        await asyncio.sleep(0.1)
        fourth = asyncio.create_task(batcher.generate([task(9)]))
        await asyncio.sleep(0)
        assert batcher.waiting == 2
        device.free.set()
        await asyncio.gather(first, second, third, fourth)
        assert sorted(device.batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    run(test, at_once=2)


def test_groups_are_apart_and_the_oldest_goes_first():
    async def test(device, batcher):
        tasks = [task(1, OTHER), task(2), task(3, OTHER), task(4)]
        await asyncio.gather(*(batcher.generate([each]) for each in tasks))
        assert device.batches == [[1, 3], [2, 4]]

    run(test)


def test_more_images_than_a_batch_holds_take_several():
    async def test(device, batcher):
        images = await batcher.generate([task(i) for i in range(6)])
        assert device.batches == [[0, 1, 2, 3], [4, 5]]
        assert [image.max() for image in images] == list(range(6))

    run(test)


def test_a_full_queue_refuses_and_says_when_to_come_back():
    async def test(device, batcher):
        device.free.clear()
        running = asyncio.create_task(batcher.generate([task(0)]))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(batcher.generate([task(i) for i in range(1, 9)]))
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match='8 images are waiting') as raised:
            await batcher.generate([task(9)])
        assert raised.value.status == 429 and raised.value.retry_after >= 1
        device.free.set()
        assert len(await waiting) == 8 and len(await running) == 1

    run(test)


def test_a_cancelled_request_is_dropped_from_the_queue_and_told_to_the_running_batch():
    async def test(device, batcher):
        device.free.clear()
        running, waiting = task(1), task(2)
        first = asyncio.create_task(batcher.generate([running]))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(batcher.generate([waiting]))
        third = asyncio.create_task(batcher.generate([task(3)]))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        await asyncio.wait([first, second])
        assert running.dropped and waiting.dropped and batcher.waiting == 1
        device.free.set()
        await third
        assert device.batches == [[1], [3]]

    run(test)


def test_a_batch_that_fails_does_not_stop_the_next():
    async def test(device, batcher):
        with pytest.raises(RuntimeError, match='broken'):
            await batcher.generate([task(666), task(1)])
        assert (await batcher.generate([task(2)]))[0].max() == 2

    run(test)
