"""The command `infinity-jax convert`: PyTorch weights in and out, LoRA adapters too."""

import argparse
import json
import re
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.flag_types import input_path, output_path, path
from infinity_jax.tools.commands.generation_flags import adapter_path

UNITS = {'': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The conversions, each with its flags."""
    conversions = parser.add_subparsers(
        dest='conversion', required=True, title='conversions', metavar='CONVERSION'
    )
    add = lambda name, text: conversions.add_parser(name, help=text, description=text)
    start = add('from-torch', 'Write a model folder from released PyTorch weights.')
    back = add('to-torch', 'Write PyTorch weights from a model folder or a training checkpoint.')
    merge = add('merge-lora', 'Merge LoRA adapters into the model folder they were trained on.')
    peft = add('to-peft', "Write LoRA adapters in PEFT's layout, for the released PyTorch model.")
    pair = add(
        'check-pair',
        'Tell by numbers whether transformer and tokenizer of a model folder belong together.',
    )
    pair.add_argument('--checkpoint', required=True, type=path, metavar='DIR', help='model folder')
    pair.set_defaults(run=run_check_pair)
    _add_from_torch(start)
    _add_to_torch(back)
    _add_merge_lora(merge)
    _add_to_peft(peft)
    for each, dtype in (
        (start, "each tensor's own"),
        (back, 'as stored or imported'),
        (merge, 'float32'),
    ):
        each.add_argument('--out', required=True, type=path, metavar='DIR', help='folder to write')
        each.add_argument(
            '--dtype',
            metavar='D',
            help=f'of the written weights: float32, bfloat16 or float16 (default: {dtype})',
        )


def _add_from_torch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--transformer',
        type=path,
        metavar='PATH',
        help='.pth or .safetensors file, or folder of shards (default: none)',
    )
    parser.add_argument(
        '--tokenizer',
        type=path,
        metavar='PATH',
        help='the tokenizer that the transformer was trained with; without --transformer also a '
        'continuous autoencoder, as initialisation of a tokenizer (default: none)',
    )
    parser.add_argument(
        '--text-encoder',
        type=path,
        metavar='DIR',
        help='Hugging Face folder or repository of a Flan-T5 (default: none)',
    )
    parser.add_argument(
        '--ema',
        action='store_true',
        help="of a training checkpoint, the transformer's moving average (default: its parameters)",
    )
    parser.add_argument(
        '--token-stride',
        type=int,
        metavar='PIXELS',
        help='edge of the square of pixels per transformer token (default: as exported, else 16)',
    )
    parser.add_argument(
        '--grids',
        type=grids,
        metavar='1,2,4x3,…',
        help='token grids, height x width, of a model with its own, or the first ones of a '
        'released ratio: the image size that it was trained at (default: the released ones)',
    )
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='PART.FIELD=VALUE',
        help='a dimension that the shapes do not show, such as tokenizer.norm_groups=4; may be '
        'given several times',
    )
    parser.add_argument(
        '--check-pair',
        action='store_true',
        help='then compute whether the two belong together, as convert check-pair does '
        '(default: no)',
    )
    parser.set_defaults(run=run_from_torch)


def _add_to_torch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--checkpoint', required=True, type=path, metavar='DIR', help='model or run folder'
    )
    parser.add_argument(
        '--ema',
        action='store_true',
        help='of a run folder, the moving average (default: its parameters)',
    )
    parser.add_argument(
        '--format',
        default='pth',
        choices=['pth', 'safetensors'],
        help='of the written files (default: %(default)s)',
    )
    parser.add_argument(
        '--shard-size',
        type=size,
        metavar='SIZE',
        help='largest safetensors file, such as 800MB (default: 5GB)',
    )
    parser.add_argument(
        '--chunks',
        type=count,
        metavar='N',
        help="number of chunks in the names of the transformer's blocks (default: as imported, "
        'else that of the released code for this size, or a divisor of the depth)',
    )
    parser.add_argument(
        '--scale-axis',
        type=int,
        choices=[1, 2],
        help='axis of the heads in scale_mul_1H11 (default: as imported, else 1)',
    )
    parser.set_defaults(run=run_to_torch)


def _add_adapted_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--checkpoint',
        required=True,
        type=path,
        metavar='DIR',
        help='model folder that the adapters were trained on',
    )


def _add_merge_lora(parser: argparse.ArgumentParser) -> None:
    _add_adapted_model(parser)
    parser.add_argument(
        '--adapter',
        required=True,
        action='append',
        type=adapter_path,
        dest='adapters',
        metavar='PATH[:STRENGTH]',
        help="adapter.safetensors of the run, or a folder in PEFT's layout, and a factor such as "
        '0.8; may be given several times (default strength: 1)',
    )
    parser.set_defaults(run=run_merge_lora)


def _add_to_peft(parser: argparse.ArgumentParser) -> None:
    _add_adapted_model(parser)
    parser.add_argument(
        '--adapter',
        required=True,
        type=input_path,
        metavar='FILE',
        help='adapter.safetensors of the run',
    )
    parser.add_argument(
        '--chunks',
        type=count,
        metavar='N',
        help='number of chunks in the names of the blocks (default: as in to-torch)',
    )
    parser.add_argument(
        '--base-model',
        default='',
        metavar='NAME',
        help='of the PyTorch model, for base_model_name_or_path (default: empty)',
    )
    parser.add_argument(
        '--out', required=True, type=output_path, metavar='DIR', help='folder to write'
    )
    parser.set_defaults(run=run_to_peft)


def size(text: str) -> int:
    """'5GB' in bytes."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([KMG]B)?', text.strip().upper())
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} is not a size; wanted one such as 5GB or 800MB')
    return int(float(match[1]) * UNITS[match[2] or ''])


def count(text: str) -> int:
    """A whole number, 1 or more."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of 1 or more')
    return int(text)


def grids(text: str) -> list[tuple[int, int]]:
    """'1,2,4x3' as (h, w) of each scale."""
    found = [re.fullmatch(r'(\d+)(?:x(\d+))?', part.strip()) for part in text.split(',')]
    matches = [match for match in found if match]
    if len(matches) < len(found):
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a list of grids; wanted one such as 1,2,4x3'
        )
    return [(int(match[1]), int(match[2] or match[1])) for match in matches]


def overrides(settings: list[str]) -> dict[str, Any]:
    """'part.field=value' to field -> value; values as in JSON, else text."""
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
    """Imports weights; prints the configurations that their shapes show."""
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
    if args.check_pair:
        from infinity_jax.tools.evaluation.pair import check_pair

        check_pair(args.out)


def run_check_pair(args: argparse.Namespace) -> None:
    """Prints the loss of a folder's transformer on the bits of its tokenizer."""
    from infinity_jax.tools.evaluation.pair import check_pair

    check_pair(args.checkpoint)


def run_to_torch(args: argparse.Namespace) -> None:
    """Exports weights; prints the paths of the files."""
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
    """Merges adapters; prints the folder of the merged model."""
    from pathlib import Path

    from infinity_jax.convert.importing import check_target
    from infinity_jax.weights.adapter_file import merge_into_folder

    check_target(Path(args.out))
    merge_into_folder(args.checkpoint, args.adapters, args.out, args.dtype or 'float32')
    print(f'wrote {args.out}')


def run_to_peft(args: argparse.Namespace) -> None:
    """Writes adapters in PEFT's layout; prints their folder."""
    from infinity_jax.convert.peft import to_peft

    to_peft(args.checkpoint, args.adapter, args.out, base=args.base_model, chunks=args.chunks)
    print(f'wrote {args.out}')
