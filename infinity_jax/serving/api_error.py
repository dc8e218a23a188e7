"""Errors as OpenAI's API reports them: a status, and JSON with message, type, param and code."""

from typing import Any

from starlette.responses import JSONResponse

TYPES = {401: 'authentication_error', 429: 'rate_limit_error', 500: 'server_error'}


class ApiError(Exception):
    """A request that cannot be answered; its message is one line for the client."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        """Takes the parts of the answer.

        Args:
          message: value seen, value wanted, what to do.
          status: of HTTP.
          param: the field of the request that is wrong.
          code: a name for programs, such as 'queue_full'.
          retry_after: seconds after which the client may try again.
        """
        super().__init__(message)
        self.message, self.status = message, status
        self.param, self.code, self.retry_after = param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        fallback = 'server_error' if self.status > 500 else 'invalid_request_error'
        kind = TYPES.get(self.status, fallback)
        fields = {'message': self.message, 'type': kind, 'param': self.param, 'code': self.code}
        return {'error': fields}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {} if self.retry_after is None else {'Retry-After': str(self.retry_after)}
        if self.status == 401:
            headers['WWW-Authenticate'] = 'Bearer'
        if self.status == 408:  # the rest of the request may come yet
            headers['Connection'] = 'close'
        return JSONResponse(self.body(), self.status, headers)
