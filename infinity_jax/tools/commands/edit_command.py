"""The command `infinity-jax edit`: an image and a prompt in, edited PNG files out."""

import argparse
import re

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.device_flags import (
    add_device_flags,
    mesh_of,
    on_devices,
)
from infinity_jax.tools.commands.flag_types import check_positive, input_path, path
from infinity_jax.tools.commands.generate_command import output_paths, plain_warnings
from infinity_jax.tools.commands.generation_flags import (
    add_adapter_flag,
    add_model_flags,
    add_quantization_flags,
    add_sampling_flags,
    model_options_of,
    quantization_of,
    sampling_of,
)
from infinity_jax.tools.commands.prompts import read_negative, read_prompts

Pair = tuple[int, int]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `edit`."""
    parser.add_argument('image', type=input_path, metavar='IMAGE', help='file of the image to edit')
    parser.add_argument('prompt', metavar='PROMPT', help='text that describes the result')
    group = parser.add_argument_group(
        'what is kept', 'Of --mask, --source-prompt and --canvas none, one or several: editing.md.'
    )
    group.add_argument(
        '--mask',
        type=input_path,
        metavar='FILE',
        help='image of the same size: what is white, or transparent, is generated, the rest is '
        'kept (default: no mask)',
    )
    group.add_argument(
        '--source-prompt',
        metavar='TEXT',
        help='text that describes the image: kept is what PROMPT does not change (default: none)',
    )
    group.add_argument(
        '--canvas',
        type=canvas,
        metavar='WIDTHxHEIGHT',
        help='size of a larger image, in pixels, or its aspect ratio such as 16:9; what the image '
        'does not cover is generated (default: no larger image)',
    )
    group.add_argument(
        '--at',
        type=position,
        metavar='COLUMN,ROW',
        help='of the image on the canvas, from the top left corner (default: in the middle)',
    )
    group.add_argument(
        '--strength',
        type=float,
        metavar='S',
        help='0 returns the image, 1 keeps nothing of it but what the flags above keep; the first '
        'scales are kept between them (default: 1 with one of those flags, else 0.5)',
    )
    group.add_argument(
        '--tolerance',
        type=float,
        metavar='NATS',
        help='with --source-prompt: a bit that becomes less likely by more is generated (default: '
        '0.4)',
    )
    group.add_argument(
        '--feather',
        type=int,
        metavar='PIXELS',
        help="inside the mask's edge that are mixed with the image (default: 1/64 of its shorter "
        'edge)',
    )
    group.add_argument(
        '--no-composite',
        action='store_false',
        dest='composite',
        help="all pixels are the model's, by a second pass through the tokenizer (default: those "
        "outside of the mask are the image's own)",
    )
    parser.add_argument(
        '--negative',
        metavar='TEXT',
        help='what the result should not show; not with --source-prompt (default: nothing)',
    )
    parser.add_argument(
        '--num', type=int, default=1, metavar='N', help='results (default: %(default)s)'
    )
    parser.add_argument(
        '--out',
        default='edited.png',
        type=path,
        metavar='PNG',
        help='file; a number is added to its name for each of several results (default: '
        '%(default)s)',
    )
    add_model_flags(parser)
    add_adapter_flag(parser)
    parser.add_argument(
        '--budget',
        metavar='M',
        help='pixels that the model generates, as in generate (default: its own, else 1M)',
    )
    add_sampling_flags(parser)
    add_quantization_flags(parser, automatic=True)
    add_device_flags(parser)
    parser.set_defaults(run=on_devices(run))


def run(args: argparse.Namespace) -> None:
    """Edits an image and writes PNG files of its size, or of the canvas."""
    (prompt,) = read_prompts([args.prompt])
    negative, source_prompt = read_negative(args.negative), read_negative(args.source_prompt)
    check_positive(args, 'num')
    paths, mesh = output_paths(args.out, args.num), mesh_of(args)
    if args.at is not None and args.canvas is None:
        raise UserError('--at is given without --canvas; it is the place on a canvas')
    if args.mask is not None and args.canvas is not None:
        raise UserError('--mask and --canvas are both given; extend the image first')
    from infinity_jax.images import check_writable, save_png
    from infinity_jax.inference.edit import Edit
    from infinity_jax.inference.edit_masks import canvas_size, extend
    from infinity_jax.inference.editor import check_words
    from infinity_jax.inference.pipeline import MAX_BATCH, InfinityPipeline
    from infinity_jax.inference.source_images import read_image, read_mask
    from infinity_jax.inference.warmup import GenerationRequest
    from infinity_jax.runtime.hub import DEMO_FOLDER
    from infinity_jax.sharding import is_first_process

    check_writable(paths[0])
    image, mask = read_image(args.image), None
    size = image.shape[0], image.shape[1]
    if args.mask is not None:
        mask = read_mask(args.mask, size)
    if args.canvas is not None:
        image, mask = extend(image, canvas_size(size, args.canvas), args.at)
    numbers = {name: getattr(args, name) for name in ('strength', 'tolerance', 'feather')}
    given = {name: value for name, value in numbers.items() if value is not None}
    edit = Edit(image, prompt, mask, source_prompt, composite=args.composite, **given)
    sampling = sampling_of(args)
    if source_prompt is not None:
        check_words(sampling, negative)  # before a model is loaded
    with plain_warnings():
        pipeline = InfinityPipeline.from_pretrained(
            args.checkpoint or DEMO_FOLDER,
            revision=args.revision,
            max_batch=min(args.num, MAX_BATCH),
            quantization=quantization_of(args),
            mesh=mesh,
            adapters=args.adapters,
            guided=sampling.guided,
            **model_options_of(args),
            request=GenerationRequest(
                (prompt,),
                args.num,
                negative or source_prompt,
                sampling,
                (image.shape[0], image.shape[1]),
            ),
        )
        results = pipeline.edit(
            edit, num=args.num, seed=args.seed, negative=negative, sampling=sampling
        )
    if not is_first_process(mesh):
        return
    for i, (file, result) in enumerate(zip(paths, results.images, strict=True)):
        metadata = {
            'image': args.image,
            'prompt': prompt,
            'source_prompt': source_prompt or '',
            'negative': negative or '',
            'mask': args.mask or '',
            'strength': '' if args.strength is None else args.strength,
            'seed': args.seed,
            'index': i,
            'guidance': ','.join(map(str, sampling.guidance)),
            'temperature': ','.join(map(str, sampling.temperature)),
            'weights': pipeline.quantization.weights,
            'cache': pipeline.quantization.cache,
            'decoder': pipeline.decoder_precision,
            'model': args.checkpoint or 'demo',
            'adapters': ' '.join(args.adapters),
        }
        save_png(file, result, metadata)
        print(file)


def canvas(text: str) -> Pair | float:
    """'640x480' as (height, width); '16:9' as height / width."""
    size = re.fullmatch(r'(\d{1,6})x(\d{1,6})', text, re.ASCII)
    if size:
        return int(size[2]), int(size[1])
    from infinity_jax.scales import height_over_width_of

    try:
        return height_over_width_of(text)
    except UserError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is neither a size such as 640x480 nor an aspect ratio such as 16:9'
        ) from None


def position(text: str) -> Pair:
    """'10,20' as (row 20, column 10)."""
    match = re.fullmatch(r'(\d{1,6}),(\d{1,6})', text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} is not a place; wanted COLUMN,ROW such as 0,64')
    return int(match[2]), int(match[1])
