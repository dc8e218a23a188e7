"""Flags that say which model draws at which size, for the commands that make its programs."""

import argparse

from infinity_jax.config import UserError


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Picture size, precision and revision; the checkpoint is a sampling flag."""
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


def picture_size_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """(height, width) if they are given.

    Raises:
      UserError: only one of them is.
    """
    if (args.height is None) != (args.width is None):
        raise UserError('only one of --height and --width is given; give both')
    return None if args.height is None else (args.height, args.width)
