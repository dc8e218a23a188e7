"""The command `infinity-jax generate`: prompts and flags in, image files out."""

import argparse
import contextlib
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.runtime.remote import any_path
from infinity_jax.tools.commands.device_flags import (
    add_device_flags,
    mesh_of,
    on_devices,
)
from infinity_jax.tools.commands.flag_types import check_positive, input_path, path
from infinity_jax.tools.commands.generation_flags import (
    add_adapter_flag,
    add_count_flags,
    add_image_size_flags,
    add_model_flags,
    add_quantization_flags,
    add_sampling_flags,
    image_size_line,
    model_options_of,
    quantization_of,
    sampling_of,
)
from infinity_jax.tools.commands.prompts import read_negative, read_prompts

DEFAULT_OUT = 'image.png'
SHEET_CELL = 192  # edge of an image on the sheet of --grid, in pixels
LINES = '.jsonl'  # ending of a file of prompts with settings
STARTED = time.perf_counter()  # before the imports that take long
ENDINGS = ('.png', '.jpg', '.jpeg')  # of image files that are written


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `generate`."""
    parser.add_argument(
        'prompts', nargs='*', metavar='PROMPT', help='text that describes the image'
    )
    parser.add_argument(
        '--prompts-file',
        type=input_path,
        metavar='FILE',
        help='more prompts, one per line of a text file in UTF-8; of a file *.jsonl, objects with '
        'settings of their own: docs/generate.md',
    )
    parser.add_argument(
        '--grid',
        nargs='+',
        metavar='FIELD=V1,V2',
        help='one sheet of all combinations, such as guidance=1,3,5 temperature=0.3,0.7 (default: '
        'no sheet)',
    )
    parser.add_argument(
        '--negative',
        metavar='TEXT',
        help='what the images should not show; needs guidance (default: nothing)',
    )
    add_count_flags(parser)
    parser.add_argument(
        '--out',
        default=DEFAULT_OUT,
        type=path,
        metavar='FILE',
        help='.png or .jpg, or a folder; a number is added to the name for each of several images '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--text-length',
        type=int,
        metavar='TOKENS',
        help='prompts are padded to it and cut at it (default: all that the model reads)',
    )
    add_model_flags(parser)
    add_adapter_flag(parser)
    parser.add_argument(
        '--no-verify',
        action='store_false',
        dest='verify',
        help='do not compare the weights with their hashes and do not refuse NaN, infinity and '
        'kernels of zeros; loads faster (default: both are checked)',
    )
    add_image_size_flags(parser)
    add_sampling_flags(parser)
    add_quantization_flags(parser, automatic=True)
    add_device_flags(parser)
    parser.set_defaults(run=on_devices(run))


def run(args: argparse.Namespace) -> None:
    """Generates images and writes files whose metadata holds the settings."""
    if args.grid or (args.prompts_file or '').endswith(LINES):
        run_jobs(args)
        return
    prompts, negative = read_prompts(args.prompts, args.prompts_file), read_negative(args.negative)
    check_positive(args, 'num', 'max_batch')
    options = model_options_of(args)
    num_images = len(prompts) * args.num
    paths, mesh = output_paths(args.out, num_images), mesh_of(args)
    from infinity_jax.images import check_writable, save_image
    from infinity_jax.inference.pipeline import MAX_BATCH, InfinityPipeline
    from infinity_jax.inference.warmup import GenerationRequest
    from infinity_jax.runtime.hub import DEMO_FOLDER
    from infinity_jax.sharding import is_first_process

    check_writable(paths[0])
    sampling = sampling_of(args)
    with plain_warnings():
        pipeline = InfinityPipeline.from_pretrained(
            args.checkpoint or DEMO_FOLDER,
            revision=args.revision,
            max_batch=min(num_images, args.max_batch or MAX_BATCH),
            quantization=quantization_of(args),
            text_length=args.text_length,
            verify=args.verify,
            adapters=args.adapters,
            mesh=mesh,
            guided=sampling.guided,
            **options,
            request=GenerationRequest(tuple(prompts), args.num, negative, sampling),
        )
        if options['height_over_width'] is not None or options['size'] is not None:
            print(image_size_line(pipeline.image_size, pipeline.schedule), file=sys.stderr)
        generated = pipeline(
            prompts, num=args.num, seed=args.seed, negative=negative, sampling=sampling
        )
        if generated.batch_seconds:
            print(timing(generated.batch_seconds, num_images), file=sys.stderr)
    if not is_first_process(mesh):
        return
    for i, (file, image) in enumerate(zip(paths, generated.images, strict=True)):
        seed, index = generated.seeds[i]
        job = {'prompt': generated.prompts[i], 'negative': negative, 'seed': seed, 'index': index}
        save_image(file, image, metadata_of(args, pipeline, sampling, job))
        print(file)


def run_jobs(args: argparse.Namespace) -> None:
    """`run` for images with settings of their own: a file of JSON lines, or a grid."""
    check_positive(args, 'num', 'max_batch')
    if args.grid and (args.num > 1 or (args.prompts_file or '').endswith(LINES)):
        raise UserError('--grid is for one image per prompt and cell; leave out --num and *.jsonl')
    if args.prompts and not args.grid:
        raise UserError(
            f'prompts and a file *{LINES} are both given; put the prompts into the file'
        )
    sampling, negative, mesh = sampling_of(args), read_negative(args.negative), mesh_of(args)
    import numpy as np
    from PIL import Image

    from infinity_jax.images import check_writable, contact_sheet, save_image
    from infinity_jax.inference.pipeline import MAX_BATCH, InfinityPipeline
    from infinity_jax.runtime.hub import DEMO_FOLDER
    from infinity_jax.sharding import is_first_process
    from infinity_jax.tools.commands import image_jobs

    if args.grid:
        grid, prompts = (
            image_jobs.parse_grid(args.grid),
            read_prompts(args.prompts, args.prompts_file),
        )
        jobs, captions = image_jobs.jobs_of_grid(grid, prompts, args.seed, negative, sampling)
        paths = output_paths(args.out, 1)
    else:
        jobs = image_jobs.jobs_of_lines(args.prompts_file, args.num, args.seed, negative, sampling)
        paths = output_paths(args.out, len(jobs))
    check_writable(paths[0])
    with plain_warnings():
        pipeline = InfinityPipeline.from_pretrained(
            args.checkpoint or DEMO_FOLDER,
            revision=args.revision,
            max_batch=min(len(jobs), args.max_batch or MAX_BATCH),
            quantization=quantization_of(args),
            text_length=args.text_length,
            verify=args.verify,
            adapters=args.adapters,
            mesh=mesh,
            guided=any(job.sampling.guided for job in jobs),
            **model_options_of(args),
        )
        images = image_jobs.generate_jobs(pipeline, jobs)
    if not is_first_process(mesh):
        return
    if args.grid:
        columns = len(next(iter(grid.values())))
        sheet = contact_sheet(np.stack(images), captions, columns=columns, cell=SHEET_CELL)
        save_image(paths[0], sheet, {'prompt': '; '.join(prompts), 'grid': ' '.join(args.grid)})
        print(paths[0])
        return
    for file, image, job in zip(paths, images, jobs, strict=True):
        metadata = metadata_of(args, pipeline, job.sampling, vars(job))
        save_image(file, Image.fromarray(image), metadata)
        print(file)


def metadata_of(
    args: argparse.Namespace, pipeline: Any, sampling: Any, image: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of an image, as its file holds them.

    Args:
      args: of the command line.
      pipeline, sampling: that generated it.
      image: its prompt, negative, seed and index.
    """
    from infinity_jax.scales import released_name

    quantization = pipeline.quantization
    height, width = pipeline.image_size
    ratio, budget = released_name(pipeline.schedule) or ('', '')
    guided = sampling.static(pipeline.schedule, quantization).guided
    return {
        'prompt': image['prompt'],
        'negative': (image['negative'] or '') if guided else '',
        'seed': image['seed'],
        'index': image['index'],
        'height': height,
        'width': width,
        'ratio': ratio,
        'budget': budget,
        'guidance': ','.join(map(str, sampling.guidance)),
        'temperature': ','.join(map(str, sampling.temperature)),
        'top_k': sampling.top_k,
        'top_p': sampling.top_p,
        'guidance_layer': sampling.guidance_layer,
        'dtype': pipeline.dtype,
        'text_dtype': pipeline.text_dtype,
        'attention': args.attention or '',
        'weights': quantization.weights,
        'cache': quantization.cache,
        'decoder': pipeline.decoder_precision,
        'unguided_scales': sampling.unguided_scales,
        'model': args.checkpoint or 'demo',
        'revision': args.revision or '',
        'adapters': ' '.join(args.adapters),
    }


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
    """OUT itself for one image; else OUT with _000, _001, … before its ending.

    In a folder, or where OUT ends in a separator, images have the default name.
    """
    path = any_path(out)
    if out.endswith(('/', os.sep)) or path.is_dir():
        path /= DEFAULT_OUT
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
