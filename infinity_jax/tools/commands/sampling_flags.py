"""Flags that say how images are drawn, for every command that draws them."""

import argparse
from typing import Any


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that draws."""
    parser.add_argument(
        '--cfg', type=numbers, metavar='G', help='guidance, one number or one a scale: 3 or 1,2,3,3'
    )
    parser.add_argument(
        '--tau', type=numbers, metavar='T', help='temperature, one number or one a scale'
    )
    parser.add_argument('--top-k', type=int, metavar='K', help='1: greedy')
    parser.add_argument(
        '--top-p', type=float, metavar='P', help='bits of probability up to 1 - P are never drawn'
    )
    parser.add_argument(
        '--cfg-layer', type=int, metavar='N', help='-n: guide hidden states, n layers from the end'
    )
    parser.add_argument('--seed', type=seed_number, default=0)
    parser.add_argument(
        '--checkpoint',
        metavar='DIR',
        help='model folder, or org/name on the Hugging Face hub; default: the demo',
    )


def numbers(text: str) -> tuple[float, ...]:
    """'3' or '1,2,3' as numbers."""
    try:
        return tuple(float(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is neither a number nor a list of them; write 3 or 1,2,3,3'
        ) from None


def seed_number(text: str) -> int:
    """A seed: jax keys would silently take a larger one modulo 2^32."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a seed; write a whole number from 0 to {2**32 - 1}'
        )
    return int(text)


def sampling_of(args: argparse.Namespace) -> Any:
    """The sampling settings that flags change, defaults otherwise."""
    from infinity_jax.inference.sampling import SamplingConfig

    fields = {
        'guidance': args.cfg,
        'temperature': args.tau,
        'top_k': args.top_k,
        'top_p': args.top_p,
        'guidance_layer': args.cfg_layer,
    }
    return SamplingConfig(**{name: value for name, value in fields.items() if value is not None})
