"""What a server counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self):
        self._registry = CollectorRegistry()
        self.requests = Counter(
            'infinity_requests', 'Answers by path and status.', ('path', 'status'),
            registry=self._registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            'infinity_request_seconds', 'Arrival to the end of the answer.', ('path',),
            registry=self._registry, buckets=SECONDS,
        )  # fmt: skip
        self.batch_images = Histogram(
            'infinity_batch_images', 'Images that shared a batch.', registry=self._registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )  # fmt: skip
        self.batch_seconds = Histogram(
            'infinity_batch_seconds', 'Seconds on the device per batch.', registry=self._registry,
            buckets=SECONDS,
        )  # fmt: skip

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Adds the number of images that wait for the device."""
        gauge = Gauge('infinity_waiting_images', 'Images in the queue.', registry=self._registry)
        gauge.set_function(waiting)

    def batch(self, images: int, seconds: float) -> None:
        """Counts a batch."""
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)

    def page(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self._registry)
