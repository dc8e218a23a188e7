"""What every request passes first: its key, its origin, its length; and what counts its answer."""

import asyncio
import hmac
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_jax.serving.api_error import ApiError
from infinity_jax.serving.limits import Limits
from infinity_jax.serving.metrics import Metrics

OPEN_PATHS = ('/', '/health')  # without a key: the page itself, and whether the server is alive


class Gate:
    """Refuses requests before anything of their body is read."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        limits: Limits,
        paths: Collection[str],
        api_key: str | None = None,
    ):
        """Takes the application behind the gate.

        Args:
          app: the application.
          metrics: counts the answers.
          limits: of the body, and of requests at the same time.
          paths: that are counted by name; nobody can fill the counters with others.
          api_key: what `Authorization: Bearer` must hold; None: nothing is asked.
        """
        self._app, self._metrics, self._limits = app, metrics, limits
        self._paths = frozenset(paths)
        self._key = None if api_key is None else api_key.encode()
        self._answering = 0  # requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with an error."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 499  # no answer: the client left
        self._answering += 1

        async def counted(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
            await send(message)

        try:
            try:
                self._check(scope)
            except ApiError as error:
                await error.response()(scope, receive, counted)
                return
            await self._app(scope, self._limited(scope, receive), counted)
        except Exception:
            status = 500  # the answer is sent further outside
            raise
        finally:
            self._answering -= 1
            path = scope['path'] if scope['path'] in self._paths else 'other'
            self._metrics.requests.labels(path, status).inc()
            self._metrics.request_seconds.labels(path).observe(time.monotonic() - start)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        origin, host = headers.get('origin'), headers.get('host')
        if origin is not None and origin != 'null' and urlsplit(origin).netloc != host:
            raise ApiError('the request comes from the page of another site', 403)
        if scope['path'] in OPEN_PATHS:
            return
        if self._answering > self._limits.requests:
            raise ApiError(
                f'{self._limits.requests} requests are being answered; try again later',
                503,
                code='server_busy',
                retry_after=2,
            )
        if self._key is None:
            return
        kind, _, given = headers.get('authorization', '').partition(' ')
        if kind.lower() != 'bearer' or not hmac.compare_digest(given.strip().encode(), self._key):
            raise ApiError(
                'the API key is absent or wrong; send it as Authorization: Bearer KEY',
                401,
                code='invalid_api_key',
            )

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, which raises an `ApiError` once the body is too long or takes too long."""
        headers, limits = Headers(scope=scope), self._limits
        form = headers.get('content-type', '').startswith('multipart/')
        limit = limits.upload_bytes if form else limits.json_bytes
        stated = headers.get('content-length', '0')
        too_long = ApiError(
            f'the request has more than {limit} bytes; send less', 413, code='request_too_large'
        )
        read, complete = 0, False
        deadline = asyncio.get_running_loop().time() + limits.timeout_s

        async def limited() -> Message:
            nonlocal read, complete
            if stated.isdigit() and len(stated) < 20 and int(stated) > limit:
                raise too_long
            try:
                async with asyncio.timeout_at(None if complete else deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    f'the request did not arrive within {limits.timeout_s:g} s; send it again',
                    408,
                    code='timeout',
                ) from None
            complete = not message.get('more_body', False)
            read += len(message.get('body', b''))
            if read > limit:
                raise too_long
            return message

        return limited
