"""The command `infinity-jax compile`: stores compiled programs in a model folder."""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from infinity_jax.runtime.remote import refuse_remote
from infinity_jax.tools.commands.flag_types import check_positive
from infinity_jax.tools.commands.generation_flags import (
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

if TYPE_CHECKING:
    import pathlib

    from infinity_jax.inference.executables import Executables
    from infinity_jax.inference.warmup import Call


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `generate` that change its programs."""
    parser.add_argument(
        '--prompts',
        type=int,
        default=1,
        metavar='N',
        help='prompts per call (default: %(default)s)',
    )
    add_count_flags(parser)
    parser.add_argument(
        '--text-length',
        type=int,
        metavar='TOKENS',
        help='the --text-length of later calls (default: all that the model reads)',
    )
    parser.add_argument(
        '--negative',
        action='store_true',
        help='later calls have a negative prompt, or edit with a source prompt (default: no)',
    )
    parser.add_argument(
        '--edit', action='store_true', help='later calls edit images (default: they generate them)'
    )
    add_model_flags(parser)
    add_image_size_flags(parser)
    add_sampling_flags(parser)
    add_quantization_flags(parser, automatic=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compiles the programs for one batch size, stores them and prints their paths.

    On a CPU a large model generates layer by layer, by many small programs; of such a model only
    the text encoder's program is stored.
    """
    check_positive(args, 'num', 'prompts', 'max_batch')
    options = model_options_of(args)
    from infinity_jax.config import pixels_per_token, required
    from infinity_jax.inference.executables import Executables
    from infinity_jax.inference.loading import read_for_generation
    from infinity_jax.inference.memory_plan import plan_memory
    from infinity_jax.inference.pipeline import MAX_BATCH
    from infinity_jax.inference.text_encoder import padded_length
    from infinity_jax.inference.warmup import BatchShape, calls_of
    from infinity_jax.runtime.hub import DEMO_FOLDER
    from infinity_jax.weights.fetch import fetch_model
    from infinity_jax.weights.placement import with_text_dtype

    advice = 'copy the model folder here, compile, and copy its compiled programs back'
    refuse_remote(args.checkpoint or '', '--checkpoint', advice)
    folder = fetch_model(args.checkpoint or DEMO_FOLDER, args.revision)
    configs = with_text_dtype(read_for_generation(folder, **options))
    transformer = required(configs.transformer, 'transformer')
    schedule = required(configs.schedule, 'schedule')
    if options['height_over_width'] is not None or options['size'] is not None:
        stride = pixels_per_token(transformer, required(configs.tokenizer, 'tokenizer'))
        print(image_size_line(schedule.image_size(stride), schedule), file=sys.stderr)
    length = padded_length(transformer, args.text_length)
    images = min(args.num * args.prompts, args.max_batch or MAX_BATCH)
    sampling, quantization = sampling_of(args), quantization_of(args)
    plan = plan_memory(  # as generate does
        configs, images, None, quantization, guided=sampling.guided, text_length=length
    )
    settings = sampling.static(schedule, plan.quantization)
    batch = BatchShape(plan.batch, args.num, length, args.negative and settings.guided, args.edit)
    executables = Executables(folder)
    for call in calls_of(configs, settings, batch, plan.quantization):
        start = time.perf_counter()
        path = _store(executables, call)
        megabytes = path.stat().st_size / 1e6
        print(f'{path}: {megabytes:.1f} MB in {time.perf_counter() - start:.1f} s')


def _store(executables: 'Executables', call: 'Call') -> 'pathlib.Path':
    """Stores the program of a call; after a fault of cuDNN attention, that with XLA's instead.

    `generate` falls back in the same way, and then finds it.
    """
    from infinity_jax.inference.generate import networks_after_fault

    try:
        return executables.store(*call)
    except RuntimeError as error:
        if 'networks' not in call.static:
            raise
        networks = networks_after_fault(call.static['networks'], error)
    return executables.store(call.function, {**call.static, 'networks': networks}, call.shapes)
