"""A tiny model behind a real server on a free port, for tests of serving."""

import contextlib
import functools
import threading
import time

import uvicorn
from helpers.generation import small_model

from infinity_jax.inference.executables import Executables
from infinity_jax.inference.loading import ReadyModel
from infinity_jax.serving.app import make_app
from infinity_jax.serving.engine import Engine
from infinity_jax.serving.limits import Limits
from infinity_jax.serving.server import listen
from infinity_jax.serving.service import Service
from infinity_jax.weights.placement import place_model

LIMITS = Limits(prompt_characters=100, images=5, waiting=6, json_bytes=4000, upload_bytes=20_000)


@functools.cache
def tiny_engine():
    return Engine(ReadyModel(place_model(small_model()), 16, Executables()), (2, 4))


@contextlib.contextmanager
def running(engines=None, limits=LIMITS, api_key=None):
    """A server in a thread; yields its service and its URL."""
    service = Service(engines or {'tiny': tiny_engine()}, limits=limits)
    bound = listen('127.0.0.1', 0)
    config = uvicorn.Config(make_app(service, api_key), log_level='critical')
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield service, f'http://127.0.0.1:{bound.getsockname()[1]}'
    finally:
        server.should_exit = True
        thread.join(30)


def until(condition):
    """Waits for a condition that another thread makes true."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, 'it did not become true'
        time.sleep(0.01)
