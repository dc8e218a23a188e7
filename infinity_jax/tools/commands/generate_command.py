"""The command `infinity-jax generate`: prompts and flags in, image files out."""

import argparse
import contextlib
import pathlib
import sys
import time
import warnings
from collections.abc import Sequence

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.flag_types import check_positive
from infinity_jax.tools.commands.generation_flags import (
    add_count_flags,
    add_image_size_flags,
    add_model_flags,
    add_quantization_flags,
    add_sampling_flags,
    image_size_line,
    image_size_of,
    quantization_of,
    ratio_of,
    sampling_of,
)
from infinity_jax.tools.commands.prompts import read_negative, read_prompts

STARTED = time.perf_counter()  # before the imports that take long
ENDINGS = ('.png', '.jpg', '.jpeg')  # of image files that are written


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `generate`."""
    parser.add_argument(
        'prompts', nargs='*', metavar='PROMPT', help='text that describes the image'
    )
    parser.add_argument(
        '--prompts-file', metavar='FILE', help='more prompts, one per line of a text file in UTF-8'
    )
    parser.add_argument(
        '--negative',
        metavar='TEXT',
        help='what the images should not show; needs guidance (default: nothing)',
    )
    add_count_flags(parser)
    parser.add_argument(
        '--out',
        default='image.png',
        metavar='FILE',
        help='.png or .jpg; a number is added to its name for each of several images '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--text-length',
        type=int,
        metavar='TOKENS',
        help='prompts are padded to it and cut at it (default: all that the model reads)',
    )
    add_model_flags(parser)
    parser.add_argument(
        '--no-verify',
        action='store_false',
        dest='verify',
        help='do not compare the weights with their hashes and do not refuse NaN, infinity and '
        'kernels of zeros; loads faster (default: both are checked)',
    )
    add_image_size_flags(parser)
    add_sampling_flags(parser)
    add_quantization_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Generates images and writes files whose metadata holds the settings."""
    prompts, negative = read_prompts(args.prompts, args.prompts_file), read_negative(args.negative)
    check_positive(args, 'num', 'max_batch')
    ratio, size = ratio_of(args), image_size_of(args)
    num_images = len(prompts) * args.num
    paths = output_paths(args.out, num_images)
    from infinity_jax.images import check_writable, save_image
    from infinity_jax.inference.pipeline import MAX_BATCH, InfinityPipeline
    from infinity_jax.inference.warmup import GenerationRequest
    from infinity_jax.runtime.hub import DEMO_FOLDER
    from infinity_jax.scales import released_name

    check_writable(paths[0])
    sampling, quantization = sampling_of(args), quantization_of(args)
    with plain_warnings():
        pipeline = InfinityPipeline.from_pretrained(
            args.checkpoint or DEMO_FOLDER,
            revision=args.revision,
            dtype=args.dtype,
            text_dtype=args.text_dtype or '',
            height_over_width=ratio,
            budget=args.budget,
            size=size,
            max_batch=min(num_images, args.max_batch or MAX_BATCH),
            quantization=quantization,
            text_length=args.text_length,
            verify=args.verify,
            request=GenerationRequest(tuple(prompts), args.num, negative, sampling),
        )
        if ratio is not None or size is not None:
            print(image_size_line(pipeline.image_size, pipeline.schedule), file=sys.stderr)
        generated = pipeline(
            prompts, num=args.num, seed=args.seed, negative=negative, sampling=sampling
        )
        if generated.batch_seconds:
            print(timing(generated.batch_seconds, num_images), file=sys.stderr)
    height, width = pipeline.image_size
    guided = sampling.static(pipeline.schedule, quantization).guided
    released_ratio, budget = released_name(pipeline.schedule) or ('', '')
    for i, (path, image) in enumerate(zip(paths, generated.images, strict=True)):
        metadata = {
            'prompt': generated.prompts[i],
            'negative': (negative or '') if guided else '',
            'seed': generated.seeds[i][0],
            'index': generated.seeds[i][1],
            'height': height,
            'width': width,
            'ratio': released_ratio,
            'budget': budget,
            'guidance': ','.join(map(str, sampling.guidance)),
            'temperature': ','.join(map(str, sampling.temperature)),
            'top_k': sampling.top_k,
            'top_p': sampling.top_p,
            'guidance_layer': sampling.guidance_layer,
            'dtype': args.dtype or '',
            'text_dtype': args.text_dtype or '',
            'weights': quantization.weights,
            'cache': quantization.cache,
            'unguided_scales': sampling.unguided_scales,
            'model': args.checkpoint or 'demo',
            'revision': args.revision or '',
        }
        save_image(path, image, metadata)
        print(path)


def timing(batch_seconds: Sequence[float], images: int) -> str:
    """One line: seconds from the start to the first image, and per image after it."""
    first, *later = batch_seconds
    since_start = time.perf_counter() - STARTED - sum(later)
    line = f'time: {since_start:.2f} s to the first image, {first:.2f} s of it generating'
    if not later:
        return line
    batch = -(-images // len(batch_seconds))
    return f'{line}; then {sum(later) / max(images - batch, 1):.3f} s per image'


def output_paths(out: str, count: int) -> list[pathlib.Path]:
    """OUT itself for one image; else OUT with _000, _001, … before its ending."""
    path = pathlib.Path(out)
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f'--out {out} does not end in .png or .jpg; images are written as these')
    if count == 1:
        return [path]
    return [path.with_name(f'{path.stem}_{i:03}{path.suffix}') for i in range(count)]


@contextlib.contextmanager
def plain_warnings():
    """Prints warnings as one line each, without file and source code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(
            f'warning: {message}', file=sys.stderr
        )
        yield
