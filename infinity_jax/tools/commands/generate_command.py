"""The command `infinity-jax generate`: prompts and flags in, PNG files out."""

import argparse
import contextlib
import pathlib
import sys
import time
import warnings
from collections.abc import Sequence

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.model_flags import (
    add_model_flags,
    add_saving_flags,
    image_size_of,
    quantization_of,
)
from infinity_jax.tools.commands.sampling_flags import sampling_of

STARTED = time.perf_counter()  # before the imports that take long


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `generate` alone; those of drawing in general are the caller's."""
    add_model_flags(parser)
    add_saving_flags(parser)
    parser.add_argument('prompts', nargs='*', help='what the images show')
    parser.add_argument('--prompts-file', metavar='FILE', help='one prompt a line')
    parser.add_argument('--num', type=int, default=1, help='images per prompt')
    parser.add_argument('--negative', metavar='TEXT', help='what the images should not show')
    parser.add_argument(
        '--out', default='image.png', help='PNG file; several images get a number each'
    )
    parser.add_argument(
        '--max-batch', type=int, metavar='N', help='images at once, at most; default: 16'
    )
    parser.add_argument(
        '--text-length',
        type=int,
        metavar='T',
        help='tokens that prompts are padded to and cut at; default: all that the model reads',
    )


def run(args: argparse.Namespace) -> None:
    """Draws and writes PNGs that remember how they were made."""
    prompts = read_prompts(args)
    for name in ('num', 'max_batch'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f'--{name.replace("_", "-")} is {value}; wanted 1 or more')
    size = image_size_of(args)
    images = len(prompts) * args.num
    paths = output_paths(args.out, images)
    from infinity_jax.images import check_writable, save_png
    from infinity_jax.inference.pipeline import MAX_BATCH, InfinityPipeline
    from infinity_jax.inference.warmup import Request
    from infinity_jax.scales import released_name
    from infinity_jax.weights.model_folder import DEMO_FOLDER

    check_writable(paths[0])
    sampling, quantization = sampling_of(args), quantization_of(args)
    with plain_warnings():
        pipeline = InfinityPipeline.from_pretrained(
            args.checkpoint or DEMO_FOLDER,
            revision=args.revision,
            dtype=args.dtype,
            ratio=args.ratio,
            budget=args.budget,
            size=size,
            max_batch=min(images, args.max_batch or MAX_BATCH),
            quantization=quantization,
            text_length=args.text_length,
            request=Request(tuple(prompts), args.num, args.negative, sampling),
        )
        ratio, budget = released_name(pipeline.schedule) or ('', '')
        height, width = pipeline.image_size
        if size is not None:
            released = f': ratio {ratio}, budget {budget}' if ratio else ''
            print(f'drawing {height} x {width} pixels{released}', file=sys.stderr)
        drawn = pipeline(
            prompts, num=args.num, seed=args.seed, negative=args.negative, sampling=sampling
        )
        if drawn.batch_seconds:
            print(timing(drawn.batch_seconds, images), file=sys.stderr)
    for i, (path, image) in enumerate(zip(paths, drawn.images, strict=True)):
        metadata = {
            'prompt': drawn.prompts[i],
            'negative': args.negative or '',
            'seed': drawn.seeds[i][0],
            'index': drawn.seeds[i][1],
            'height': height,
            'width': width,
            'ratio': ratio,
            'budget': budget,
            'guidance': ','.join(map(str, sampling.guidance)),
            'temperature': ','.join(map(str, sampling.temperature)),
            'top_k': sampling.top_k,
            'top_p': sampling.top_p,
            'guidance_layer': sampling.guidance_layer,
            'dtype': args.dtype or '',
            'weights': quantization.weights,
            'cache': quantization.cache,
            'unguided_scales': quantization.unguided_scales,
            'model': args.checkpoint or 'demo',
            'revision': args.revision or '',
        }
        save_png(path, image, metadata)
        print(path)


def timing(batch_seconds: Sequence[float], images: int) -> str:
    """One line: how long the first image took from the start, and each one after that."""
    first, *later = batch_seconds
    since_start = time.perf_counter() - STARTED - sum(later)
    line = f'time: {since_start:.2f} s to the first image, {first:.2f} s of it drawing'
    if not later:
        return line
    batch = -(-images // len(batch_seconds))
    return f'{line}; then {sum(later) / max(images - batch, 1):.3f} s an image'


def read_prompts(args: argparse.Namespace) -> list[str]:
    """Prompts of the command line, then those of the file.

    Raises:
      UserError: there is none, one is empty, or the file cannot be read.
    """
    prompts = list(args.prompts)
    if args.prompts_file:
        try:
            lines = pathlib.Path(args.prompts_file).read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'--prompts-file {args.prompts_file}: {error}') from None
        prompts += [line for line in lines if line.strip()]
    if not prompts:
        raise UserError('no prompt given; write what the image should show, or --prompts-file')
    if not all(prompt.strip() for prompt in prompts):
        raise UserError('a prompt is empty; write what the image should show')
    return prompts


def output_paths(out: str, count: int) -> list[pathlib.Path]:
    """OUT itself for one image; else OUT with _000, _001, … before its ending."""
    path = pathlib.Path(out)
    if path.suffix.lower() != '.png':
        raise UserError(f'--out {out} does not end in .png; images are written as PNG')
    if count == 1:
        return [path]
    return [path.with_name(f'{path.stem}_{i:03}{path.suffix}') for i in range(count)]


@contextlib.contextmanager
def plain_warnings():
    """Shows warnings as the user's one line, without file and source."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(
            f'warning: {message}', file=sys.stderr
        )
        yield
