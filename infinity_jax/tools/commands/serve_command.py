"""The command `infinity-jax serve`: models behind an HTTP server, with a page."""

import argparse
import functools
import sys
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.runtime.remote import check_scheme
from infinity_jax.tools.commands.generation_flags import (
    add_adapter_flag,
    add_image_size_flags,
    add_model_flags,
    add_quantization_flags,
    model_options_of,
    quantization_of,
)

# Options of every model; version, adapters and image size are of the first one.
OF_ALL_MODELS = ('dtype', 'text_dtype', 'attention', 'text_encoder')


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `serve`."""
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        metavar='ADDRESS',
        help='address to listen on; 0.0.0.0 is all (default: %(default)s, this machine alone)',
    )
    parser.add_argument(
        '--port', type=int, default=8000, metavar='N', help='0: any (default: %(default)s)'
    )
    parser.add_argument(
        '--name',
        metavar='NAME',
        help='of the model of --checkpoint in requests (default: its last folder name)',
    )
    parser.add_argument(
        '--model',
        action='append',
        default=[],
        dest='models',
        metavar='NAME=DIR',
        help='a further model; may be given several times (default: none)',
    )
    parser.add_argument(
        '--batch-sizes',
        default='2,4,8',
        metavar='N,N,…',
        help='images generated at the same time; larger sizes are used where they generate the '
        'same bytes as the smallest (default: %(default)s)',
    )
    parser.add_argument(
        '--no-warm-up',
        action='store_false',
        dest='warm_up',
        help='start at once and compile when requests come (default: compile first)',
    )
    _add_limit_flags(parser)
    add_model_flags(parser)
    add_adapter_flag(parser)
    add_image_size_flags(parser)
    add_quantization_flags(parser, automatic=True)
    parser.set_defaults(run=run)


def _add_limit_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('limits')
    group.add_argument(
        '--max-images',
        type=int,
        default=10,
        metavar='N',
        help='images per request (default: %(default)s)',
    )
    group.add_argument(
        '--max-waiting',
        type=int,
        default=64,
        metavar='N',
        help='images that wait; more are refused with status 429 (default: %(default)s)',
    )
    group.add_argument(
        '--timeout',
        type=float,
        default=300,
        metavar='SECONDS',
        help='of a request (default: %(default)s)',
    )


def run(args: argparse.Namespace) -> None:
    """Loads the models and serves them until SIGTERM."""
    for name in ('max_images', 'max_waiting', 'timeout'):
        if not getattr(args, name) >= 1:
            flag = name.replace('_', '-')
            raise UserError(f'--{flag} is {getattr(args, name)}; wanted 1 or more')
    sizes = _batch_sizes(args.batch_sizes)
    folders = _folders(args)
    try:
        from infinity_jax.serving.server import api_key, listen, serve
        from infinity_jax.serving.service import Service
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed; serve needs pip install 'infinity_jax[serve]'"
        ) from None
    from infinity_jax.serving.engine import Engine, default_group
    from infinity_jax.serving.limits import Limits

    api_key()  # checked before models load
    bound = listen(args.host, args.port)
    options = model_options_of(args)
    engines: dict[str, Engine] = {}
    for name, folder in folders.items():
        if engines:
            options = {key: options[key] for key in OF_ALL_MODELS}
        engines[name] = Engine.load(
            folder,
            revision=None if engines else args.revision,
            sizes=sizes,
            quantization=quantization_of(args),
            adapters=() if engines else args.adapters,
            **options,
        )
        if args.warm_up:
            engine = engines[name]
            engine.warm_up(
                default_group(engine),
                functools.partial(_report, name),
            )
    limits = Limits(images=args.max_images, waiting=args.max_waiting, timeout_s=args.timeout)
    serve(Service(engines, limits=limits), bound)


def _report(name: str, line: str) -> None:
    print(f'{name}: {line}', file=sys.stderr)


def _batch_sizes(text: str) -> tuple[int, ...]:
    sizes = text.split(',')
    if not all(size.isascii() and size.isdigit() for size in sizes):
        raise UserError(f'--batch-sizes is {text!r}; wanted rising numbers such as 2,4,8')
    return tuple(map(int, sizes))


def _folders(args: argparse.Namespace) -> dict[str, Any]:
    """Folders, or names on the hub, by the models' names; the first is the default."""
    from infinity_jax.runtime.hub import DEMO_FOLDER

    first = args.checkpoint or DEMO_FOLDER
    named = args.name or str(first).rstrip('/').rpartition('/')[2]
    folders = {named: first}
    for text in args.models:
        name, equals, folder = text.partition('=')
        if not (name and equals and folder):
            raise UserError(f'--model is {text!r}; wanted NAME=DIR')
        check_scheme(folder, '--model')
        if name in folders:
            raise UserError(f'two models are named {name!r}; give each a name of its own')
        folders[name] = folder
    return folders
