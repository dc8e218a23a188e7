"""The HTTP application: OpenAI's images API, health, metrics and the page."""

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from infinity_jax.serving.api_error import ApiError
from infinity_jax.serving.edit_request import EDIT_FIELDS, checked_pixels, read_edit, read_form
from infinity_jax.serving.gate import Gate
from infinity_jax.serving.image_request import ImageRequest
from infinity_jax.serving.service import Finish, Service, as_generated
from infinity_jax.serving.tasks import ImageTask

PAGE = pathlib.Path(__file__).parent / 'page.html'
# The page is one file without scripts of others: nothing may be loaded from elsewhere.
PAGE_POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'"
)
CLIENT_LEFT = 499


class _ClientLeft(Exception):
    """The client closed the connection before its answer was ready."""


class _Events(StreamingResponse):
    """Server-sent events; what is held for them is released when they end or the client leaves."""

    def __init__(self, events: AsyncIterator[bytes], held: contextlib.ExitStack):
        headers = {'Cache-Control': 'no-store'}
        super().__init__(events, media_type='text/event-stream', headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


class Endpoints:
    """The functions behind the paths."""

    def __init__(self, service: Service):
        """service: the models."""
        self._service = service

    def routes(self) -> list[Route]:
        """All paths."""
        return [
            Route('/', self.page),
            Route('/health', self.health),
            Route('/metrics', self.metrics),
            Route('/v1/models', self.models),
            Route('/v1/models/{model:path}', self.model),
            Route('/v1/images/generations', self.generations, methods=['POST']),
            Route('/v1/images/edits', self.edits, methods=['POST']),
            Route('/v1/images/reconstructions', self.reconstructions, methods=['POST']),
        ]

    async def page(self, request: Request) -> Response:
        """The page."""
        headers = {'Content-Security-Policy': PAGE_POLICY, 'Referrer-Policy': 'no-referrer'}
        return HTMLResponse(PAGE.read_text(encoding='utf-8'), headers=headers)

    async def health(self, request: Request) -> Response:
        """Answers as long as the event loop does."""
        return JSONResponse({'status': 'ok', 'models': list(self._service.engines)})

    async def metrics(self, request: Request) -> Response:
        """Counters for Prometheus."""
        return Response(self._service.metrics.page(), media_type='text/plain; version=0.0.4')

    async def models(self, request: Request) -> Response:
        """All models."""
        return JSONResponse({'object': 'list', 'data': self._service.models()})

    async def model(self, request: Request) -> Response:
        """One model by its name."""
        name = request.path_params['model']
        for model in self._service.models():
            if model['id'] == name:
                return JSONResponse(model)
        raise ApiError(
            f'model is {name!r:.80}; this server has {", ".join(self._service.engines)}',
            404,
            param='model',
            code='model_not_found',
        )

    async def generations(self, request: Request) -> Response:
        """Images of a prompt, at once or as events."""
        wanted = self._service.parse(await json_fields(request))
        return await self._images(request, wanted, wanted.tasks(), contextlib.ExitStack())

    async def edits(self, request: Request) -> Response:
        """An image, changed where its mask is transparent, by strength, or by words."""
        form = await read_form(request)
        of_edit = (*EDIT_FIELDS, 'size')  # the result has the size of the source
        fields = {name: value for name, value in form.fields.items() if name not in of_edit}
        wanted, limits = self._service.parse(fields), self._service.limits
        pixels = await asyncio.to_thread(checked_pixels, form, limits)
        with contextlib.ExitStack() as held:
            held.enter_context(self._service.room.hold(pixels))
            read = await asyncio.to_thread(read_edit, form, wanted.prompt, limits)
            wanted, tasks = await self._service.edit(wanted, read)
            return await self._images(request, wanted, tasks, held, 'image_edit', read.finish)

    async def reconstructions(self, request: Request) -> Response:
        """An image after its bits of 1 to all scales; no interface of OpenAI's."""
        form = await read_form(request)
        fields = {'prompt': 'none'} | {k: v for k, v in form.fields.items() if k == 'model'}
        wanted, limits = self._service.parse(fields), self._service.limits
        with self._service.room.hold(await asyncio.to_thread(checked_pixels, form, limits)):
            read = await asyncio.to_thread(read_edit, form, wanted.prompt, limits)
            answer = self._service.reconstructions(wanted.model, read)
            return JSONResponse(await unless_gone(request, answer))

    async def _images(
        self,
        request: Request,
        wanted: ImageRequest,
        tasks: Sequence[ImageTask],
        held: contextlib.ExitStack,
        kind: str = 'image_generation',
        finish: Finish = as_generated,
    ) -> Response:
        """Images at once, or as events, which take over what is held meanwhile."""
        if not wanted.stream:
            answer = self._service.answer(wanted, tasks, finish)
            return JSONResponse(await unless_gone(request, answer))
        events = await self._service.events(wanted, tasks, kind, finish)
        return _Events(events, held.pop_all())


async def json_fields(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
      ApiError: the body is something else.
    """
    kind = request.headers.get('content-type', '').partition(';')[0].strip()
    if kind != 'application/json':
        raise ApiError(f'Content-Type is {kind!r:.80}; wanted application/json', 415)
    try:
        fields = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ApiError('the body is no JSON in UTF-8; send one object') from None
    if not isinstance(fields, dict):
        raise ApiError(f'the body is a JSON {type(fields).__name__}; wanted an object')
    return fields


async def unless_gone(request: Request, answer: Coroutine[Any, Any, Any]) -> Any:
    """The answer; it is cancelled when the client closes the connection.

    Raises:
      _ClientLeft: it did.
    """

    async def gone() -> None:
        while (await request.receive())['type'] != 'http.disconnect':
            pass

    job, left = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({job, left}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise _ClientLeft
        return job.result()
    finally:
        job.cancel()
        left.cancel()


def make_app(service: Service, api_key: str | None = None) -> Starlette:
    """The application of a service.

    Args:
      service: the models.
      api_key: asked of every request but the page and /health; None: of none.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await service.close()

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path[:80]
        return ApiError(f'{request.method} {path}: {error.detail}', error.status_code).response()

    async def any_error(request: Request, error: Exception) -> Response:
        return ApiError('the server failed; its log says why', 500).response()

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)

    routes = Endpoints(service).routes()
    gate = Middleware(
        Gate,
        metrics=service.metrics,
        limits=service.limits,
        paths=[route.path for route in routes],
        api_key=api_key,
    )
    return Starlette(
        routes=routes,
        middleware=[gate],
        exception_handlers={
            ApiError: api_error,
            HTTPException: http_error,
            ClientDisconnect: left,
            _ClientLeft: left,
            Exception: any_error,
        },
        lifespan=lifespan,
    )
