"""Runs the application: address, signals, and an ending that finishes what runs."""

import os
import signal
import socket
import sys

import uvicorn

from infinity_jax.errors import UserError
from infinity_jax.serving.app import make_app
from infinity_jax.serving.service import Service

KEY_VARIABLE = 'INFINITY_JAX_API_KEY'
IDLE_S = 30


def api_key() -> str | None:
    """The key in the environment, without spaces and line ends around it; None: there is none.

    Raises:
      UserError: it is empty, as of an unset variable of a script, or cannot be sent in a header.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        return None
    key = key.strip()
    if not key:
        raise UserError(f'{KEY_VARIABLE} is empty; set it to a key, or remove it')
    if not (key.isascii() and key.isprintable()):
        raise UserError(f'{KEY_VARIABLE} holds other characters than printable ASCII; change it')
    return key


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
      UserError: the address cannot be used.
    """
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'cannot listen on {host}:{port}: {reason}; name another --port') from None
    return bound


def serve(service: Service, bound: socket.socket) -> None:
    """Answers requests until SIGTERM or Ctrl-C; requests that were taken on are finished.

    Args:
      service: the models.
      bound: of `listen`.
    """
    key = api_key()
    config = uvicorn.Config(
        make_app(service, key),
        log_level='warning',
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=int(service.limits.timeout_s) + 1,
    )
    host, port = bound.getsockname()[:2]
    local = host in ('127.0.0.1', '::1')
    name = f'[{host}]' if ':' in host else host
    print(f'serving {", ".join(service.engines)} on http://{name}:{port}', file=sys.stderr)
    if key is None and not local:
        print(
            f'warning: anyone who reaches this address can use it; set {KEY_VARIABLE}',
            file=sys.stderr,
        )
    # uvicorn raises the signal that ended it once more: by then everything is finished.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run([bound])
