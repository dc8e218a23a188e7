"""Flags that say which model draws at which size, for the commands that make its programs."""

import argparse
from typing import Any

from infinity_jax.errors import UserError


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Image size, precision and revision; the checkpoint is a sampling flag."""
    parser.add_argument('--ratio', metavar='R', help='height/width; the nearest of 15, default 1')
    parser.add_argument('--budget', metavar='M', help='of pixels: 0.06M, 0.25M, 0.60M or 1M')
    parser.add_argument('--height', type=int, metavar='Y', help='pixels, with --width instead')
    parser.add_argument(
        '--width',
        type=int,
        metavar='X',
        help='of both; the nearest ratio is drawn, of as many pixels',
    )
    parser.add_argument(
        '--dtype',
        choices=['float32', 'bfloat16'],
        help="of the transformer's and text encoder's products; default: the model's own",
    )
    parser.add_argument('--revision', help='of a Hugging Face repository: branch, tag or commit')


def add_saving_flags(parser: argparse.ArgumentParser) -> None:
    """What `QuantizationConfig` offers."""
    saved = parser.add_argument_group('lossy savings, off by default; docs/memory.md has the cost')
    saved.add_argument('--weights', choices=['int8'], help="of the transformer's blocks")
    saved.add_argument('--cache', choices=['int8'], help='keys and values of earlier scales')
    saved.add_argument(
        '--unguided-scales', type=int, metavar='N', help='so many last scales run without guidance'
    )


def quantization_of(args: argparse.Namespace) -> Any:
    """The savings that flags ask for."""
    from infinity_jax.config import QuantizationConfig

    fields = {name: getattr(args, name) for name in ('weights', 'cache', 'unguided_scales')}
    return QuantizationConfig(
        **{name: value for name, value in fields.items() if value is not None}
    )


def image_size_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """(height, width) if they are given.

    Raises:
      UserError: only one of them is.
    """
    if (args.height is None) != (args.width is None):
        raise UserError('only one of --height and --width is given; give both')
    return None if args.height is None else (args.height, args.width)
