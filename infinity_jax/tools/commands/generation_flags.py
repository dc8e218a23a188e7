"""Flags of the commands that generate images: model, image size, sampling, lossy savings."""

import argparse
import os
import re
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.flag_types import (
    RenamedFlag,
    aspect_ratio,
    input_path,
    layer,
    numbers,
    path,
    seed_number,
)

BUDGETS = '0.06M (256x256 if square), 0.25M (512x512), 0.60M (768x768) or 1M (1024x1024)'


def add_checkpoint_flag(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The model that generates."""
    parser.add_argument(
        '--checkpoint',
        type=path,
        metavar='DIR',
        help='model folder, or org/name on the Hugging Face hub (default: the demo)',
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The model, its version and its precision."""
    group = parser.add_argument_group('model')
    add_checkpoint_flag(group)
    group.add_argument(
        '--revision',
        metavar='R',
        help="branch, tag or commit of a hub repository (default: the repository's main branch)",
    )
    group.add_argument(
        '--dtype',
        choices=['float32', 'bfloat16'],
        help="of the products in the transformer (default: the model's own; float32 on an NVIDIA "
        'card before Ampere)',
    )
    group.add_argument(
        '--text-dtype',
        choices=['float32', 'bfloat16', 'float16'],
        help="of the products in the text encoder (default: the model's; on a GPU float16 in "
        'place of bfloat16)',
    )
    add_attention_flag(group)
    group.add_argument(
        '--text-encoder',
        choices=['auto', 'device', 'host'],
        help='the memory that holds it: that of the device, or of the host, from where it moves to '
        'the device while it encodes (default: auto, the host where the device lacks room)',
    )


def add_attention_flag(group: Any) -> None:
    """The implementation of attention."""
    group.add_argument(
        '--attention',
        choices=['auto', 'xla', 'cudnn', 'splash'],
        help='its implementation: docs/scaling.md (default: auto, by device; XLA after a fault of '
        'cuDNN)',
    )


def add_adapter_flag(parser: argparse.ArgumentParser) -> None:
    """LoRA adapters of the model."""
    parser.add_argument(
        '--adapter',
        action='append',
        default=[],
        type=adapter_path,
        dest='adapters',
        metavar='PATH[:STRENGTH]',
        help="LoRA adapters: a run's adapter.safetensors, or a folder in PEFT's layout, and a "
        'factor such as 0.8; may be given several times (default: none, strength 1)',
    )


def adapter_path(text: str) -> str:
    """A path with or without a strength, which is parsed once the model is read."""
    if os.path.exists(text):  # its name may end as a strength does
        return text
    found = re.search(r':[-+.\deE]+$', text)
    file, strength = (text[: found.start()], found[0]) if found else (text, '')
    if not file or file.startswith(':'):
        raise argparse.ArgumentTypeError(
            f'{text!r} names no file; wanted PATH or PATH:STRENGTH, such as adapter.safetensors:0.8'
        )
    return input_path(file) + strength


def add_count_flags(parser: argparse.ArgumentParser) -> None:
    """Images per prompt and per program call."""
    parser.add_argument(
        '--num',
        type=int,
        default=1,
        metavar='N',
        help='images per prompt (default: %(default)s)',
    )
    parser.add_argument(
        '--max-batch',
        type=int,
        metavar='N',
        help='images generated at the same time, at most (default: 16)',
    )


def add_image_size_flags(parser: argparse.ArgumentParser) -> None:
    """An aspect ratio and a pixel budget, or height and width."""
    group = parser.add_argument_group('image size')
    add_ratio_flags(group)
    group.add_argument(
        '--budget', metavar='M', help=f"pixels: {BUDGETS} (default: the model's own, else 1M)"
    )
    group.add_argument(
        '--height',
        type=int,
        metavar='PIXELS',
        help='with --width and without a ratio: the released size that is nearest in ratio and '
        'has at least as many pixels',
    )
    group.add_argument('--width', type=int, metavar='PIXELS', help='see --height')


def add_ratio_flags(group: Any, default: str = "the model's own, else 1:1") -> None:
    """The shape of an image in two notations, of which one may be given."""
    group.add_argument(
        '--aspect-ratio',
        type=aspect_ratio,
        metavar='WIDTH:HEIGHT',
        help='such as 16:9, 1:1 or 3:2; the nearest of the 15 released ratios is used, and the '
        f'image size is printed (default: {default})',
    )
    group.add_argument(
        '--height-over-width',
        metavar='R',
        help='the same as one number, height divided by width, as the released code names its '
        'ratios: 0.571 for 16:9',
    )
    group.add_argument(
        '--ratio', action=RenamedFlag, current='--height-over-width', dest='height_over_width'
    )


def add_quantization_flags(
    parser: argparse.ArgumentParser, automatic: bool = False, title: str = 'lossy savings'
) -> None:
    """The fields of `QuantizationConfig`; `automatic`: 8 bits where memory is short, by default."""
    group = parser.add_argument_group(title, 'Their cost in quality: docs/memory.md.')
    if automatic:
        choices, default = ['auto', 'full', 'int8'], 'auto'
        reason = 'auto, int8 on a GPU or TPU whose memory is too small for full'
    else:
        choices, default, reason = ['full', 'int8'], 'full', 'full'
    group.add_argument(
        '--weights',
        choices=choices,
        default=default,
        help=f"format of the kernels in the transformer's blocks (default: {reason})",
    )
    group.add_argument(
        '--cache',
        choices=choices,
        default=default,
        help=f'format of the cached keys and values of earlier scales (default: {reason})',
    )
    group.add_argument(
        '--decoder-precision',
        choices=['auto', 'float32', 'tf32_mixed', 'tf32', 'bfloat16_3x', 'bfloat16'],
        metavar='P',
        help="of the decoder's convolutions: float32, tf32_mixed and tf32 (GPU), bfloat16_3x or "
        'bfloat16; a CPU emulates the last four (default: float32 on a CPU, tf32_mixed on a GPU, '
        'bfloat16_3x on a TPU)',
    )


def add_sampling_flags(
    parser: argparse.ArgumentParser, guidance: float = 3.0, temperature: float = 0.5
) -> None:
    """The fields of `SamplingConfig`, and the seed; with defaults for the help."""
    group = parser.add_argument_group('sampling')
    group.add_argument(
        '--seed',
        type=seed_number,
        default=0,
        metavar='N',
        help='of the random numbers, 0 to 2^32 - 1 (default: %(default)s)',
    )
    group.add_argument(
        '--cfg',
        type=numbers,
        metavar='G',
        help='scale of classifier-free guidance, one number or one per scale such as 1,2,3,3; '
        f'1 switches it off (default: {guidance})',
    )
    group.add_argument(
        '--cfg-layer',
        type=layer,
        metavar='N',
        help='where guidance acts: 0 on the logits, -n on the hidden states n blocks before the '
        'end (default: 0)',
    )
    group.add_argument(
        '--tau',
        type=numbers,
        metavar='T',
        help=f'temperature, one number or one per scale (default: {temperature})',
    )
    group.add_argument(
        '--top-k', type=int, metavar='K', help='1 is greedy, 0 switches it off (default: 0)'
    )
    group.add_argument(
        '--top-p',
        type=float,
        metavar='P',
        help='a bit value of probability 1 - P or less is never sampled; 1 switches it off '
        '(default: 0.97)',
    )
    group.add_argument(
        '--unguided-scales',
        type=int,
        metavar='N',
        help='number of last scales that run without guidance; its cost in quality: docs/memory.md '
        '(default: 0)',
    )


def sampling_of(args: argparse.Namespace) -> Any:
    """`SamplingConfig` with the fields that flags set."""
    from infinity_jax.inference.sampling import SamplingConfig

    fields = {
        'guidance': args.cfg,
        'temperature': args.tau,
        'top_k': args.top_k,
        'top_p': args.top_p,
        'guidance_layer': args.cfg_layer,
        'unguided_scales': args.unguided_scales,
    }
    return SamplingConfig(**{name: value for name, value in fields.items() if value is not None})


def quantization_of(args: argparse.Namespace) -> Any:
    """`QuantizationConfig` with the fields that flags set."""
    from infinity_jax.config import QuantizationConfig

    fields = {
        'weights': args.weights,
        'cache': args.cache,
        'decoder': args.decoder_precision,
    }
    return QuantizationConfig(
        **{name: value for name, value in fields.items() if value is not None}
    )


def model_options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `InfinityPipeline.from_pretrained` from the flags of model and image size.

    Raises:
      UserError: flags of the image size contradict each other.
    """
    options = {
        'dtype': args.dtype,
        'text_dtype': args.text_dtype or '',
        'attention': args.attention,
        'text_encoder': args.text_encoder,
        'budget': args.budget,
    }
    if 'height' in args:  # all but `edit`, whose images have the shape of their source
        options |= {'height_over_width': ratio_of(args), 'size': image_size_of(args)}
    return options


def ratio_of(args: argparse.Namespace) -> float | str | None:
    """Height / width, if a flag gives it.

    Raises:
      UserError: both flags are given.
    """
    if args.aspect_ratio is not None and args.height_over_width is not None:
        raise UserError('--aspect-ratio and --height-over-width are both given; give one of them')
    return args.height_over_width if args.aspect_ratio is None else args.aspect_ratio


def image_size_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """(height, width) in pixels, if they are given.

    Raises:
      UserError: only one of them is, or a ratio as well.
    """
    if (args.height is None) != (args.width is None):
        raise UserError('only one of --height and --width is given; give both')
    if args.height is None:
        return None
    if ratio_of(args) is not None:
        raise UserError('give either a ratio or --height and --width, not both')
    return args.height, args.width


def image_size_line(size: tuple[int, int], schedule: Any) -> str:
    """The image size that a request led to, as a line for the user.

    Args:
      size: (height, width) in pixels.
      schedule: the `ScaleSchedule` of the image.
    """
    from infinity_jax.scales import released_name

    height, width = size
    line = f'image size: {width} x {height} pixels (width x height)'
    released = released_name(schedule)
    if released is None:
        return line
    return f'{line}, released for height/width {released[0]} and budget {released[1]}'
