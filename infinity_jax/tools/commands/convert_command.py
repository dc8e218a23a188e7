"""`infinity-jax convert`: flags of PyTorch files in and out, and of merging adapters."""

import argparse
import json
import re
from typing import Any

from infinity_jax.errors import UserError

UNITS = {'': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The directions and their flags."""
    directions = parser.add_subparsers(dest='direction', required=True, metavar='DIRECTION')
    text = 'Released PyTorch weights to a model folder.'
    start = directions.add_parser('from-torch', help=text, description=text)
    start.add_argument('--transformer', metavar='PATH', help='.pth, .safetensors or shard folder')
    start.add_argument(
        '--tokenizer',
        metavar='PATH',
        help='the tokenizer that it was trained with; alone also a continuous autoencoder, to '
        'start training one from',
    )
    start.add_argument(
        '--text-encoder', metavar='DIR', help='Hugging Face folder or repository of a Flan-T5'
    )
    start.add_argument(
        '--ema', action='store_true', help="transformer's moving average in a training checkpoint"
    )
    start.add_argument(
        '--token-stride', type=int, default=16, metavar='PIXELS', help='of a transformer token'
    )
    start.add_argument(
        '--grids',
        type=grids,
        metavar='1,2,4x3,…',
        help='token grids of a model with its own; default: the released ones',
    )
    start.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='PART.FIELD=VALUE',
        help='a dimension that shapes cannot show: tokenizer.norm_groups=4',
    )
    start.set_defaults(run=run_from_torch)
    text = 'A model folder or training checkpoint to PyTorch weights.'
    back = directions.add_parser('to-torch', help=text, description=text)
    back.add_argument('--checkpoint', required=True, metavar='DIR', help='model or run folder')
    back.add_argument('--ema', action='store_true', help='moving average of a run')
    back.add_argument('--format', default='pth', choices=['pth', 'safetensors'])
    back.add_argument('--shard-size', type=size, metavar='5GB', help='of safetensors files')
    back.add_argument('--chunks', type=count, metavar='N', help="of the blocks' names")
    back.add_argument(
        '--scale-axis', type=int, choices=[1, 2], help='where scale_mul_1H11 has the heads'
    )
    back.set_defaults(run=run_to_torch)
    text = 'LoRA adapters of a run, merged into the model folder that they were trained on.'
    lora = directions.add_parser('merge-lora', help=text, description=text)
    lora.add_argument('--checkpoint', required=True, metavar='DIR', help='that model folder')
    lora.add_argument('--adapter', required=True, metavar='FILE', help='adapter.safetensors')
    lora.set_defaults(run=run_merge_lora)
    for each in (start, back, lora):
        each.add_argument('--out', required=True, metavar='DIR')
        each.add_argument('--dtype', metavar='D', help='float32, bfloat16 or float16')


def size(text: str) -> int:
    """'5GB' in bytes."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([KMG]B)?', text.strip().upper())
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} is no size; wanted one such as 5GB or 800MB')
    return int(float(match[1]) * UNITS[match[2] or ''])


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 1 on')
    return int(text)


def grids(text: str) -> list[tuple[int, int]]:
    """'1,2,4x3' as (h, w) of each scale."""
    found = [re.fullmatch(r'(\d+)(?:x(\d+))?', part.strip()) for part in text.split(',')]
    if not all(found):
        raise argparse.ArgumentTypeError(
            f'{text!r} is no list of grids; wanted one such as 1,2,4x3'
        )
    return [(int(match[1]), int(match[2] or match[1])) for match in found]


def overrides(settings: list[str]) -> dict[str, Any]:
    """'part.field=value' to field -> value; numbers, lists and true or false as in JSON."""
    found = {}
    for setting in settings:
        name, equals, value = setting.partition('=')
        if not equals:
            raise UserError(f'--set {setting}: wanted PART.FIELD=VALUE')
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def run_from_torch(args: argparse.Namespace) -> None:
    """Imports, and says what was found."""
    from infinity_jax.convert.importing import from_torch

    configs = from_torch(
        args.out,
        transformer=args.transformer,
        tokenizer=args.tokenizer,
        text_encoder=args.text_encoder,
        ema=args.ema,
        dtype=args.dtype,
        token_stride=args.token_stride,
        grids=args.grids,
        overrides=overrides(args.set),
    )
    for config in (configs.transformer, configs.tokenizer, configs.text):
        if config is not None:
            print(config)
    print(f'wrote {args.out}')


def run_to_torch(args: argparse.Namespace) -> None:
    """Exports, and lists the files."""
    from infinity_jax.convert.exporting import to_torch_files
    from infinity_jax.weights.safetensors_writer import SHARD_BYTES

    files = to_torch_files(
        args.checkpoint,
        args.out,
        ema=args.ema,
        file_format=args.format,
        shard_size=SHARD_BYTES if args.shard_size is None else args.shard_size,
        chunks=args.chunks,
        scale_axis=args.scale_axis,
        dtype=args.dtype,
    )
    for file in files:
        print(file)


def run_merge_lora(args: argparse.Namespace) -> None:
    """Merges, and says where the model is."""
    from pathlib import Path

    from infinity_jax.convert.importing import check_target
    from infinity_jax.weights.adapter_file import merge_into_folder

    check_target(Path(args.out))
    merge_into_folder(args.checkpoint, args.adapter, args.out, args.dtype or 'float32')
    print(f'wrote {args.out}')
