"""The command `infinity-jax compile`: stores the programs of `generate` beside a checkpoint."""

import argparse
import dataclasses
import time

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.model_flags import (
    add_model_flags,
    add_saving_flags,
    image_size_of,
    quantization_of,
)
from infinity_jax.tools.commands.sampling_flags import add_sampling_flags, sampling_of


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Of `generate`, the flags that change the program."""
    add_model_flags(parser)
    add_saving_flags(parser)
    add_sampling_flags(parser)
    parser.add_argument('--num', type=int, default=1, help='images per prompt')
    parser.add_argument('--prompts', type=int, default=1, metavar='N', help='how many at once')
    parser.add_argument(
        '--max-batch', type=int, metavar='N', help='images at once, at most; default: 16'
    )
    parser.add_argument('--text-length', type=int, metavar='N', help='for calls with --text-length')
    parser.add_argument('--negative', action='store_true', help='for calls with --negative')


def run(args: argparse.Namespace) -> None:
    """Compiles text encoder and drawing for one batch size and prints where they lie.

    On a CPU a large model is drawn by many small programs; of it only the encoder's is stored.
    """
    for name in ('num', 'prompts', 'max_batch'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f'--{name.replace("_", "-")} is {value}; wanted 1 or more')
    from infinity_jax.inference.executables import Programs
    from infinity_jax.inference.pipeline import MAX_BATCH, check_complete
    from infinity_jax.inference.resolution import choose_schedule
    from infinity_jax.inference.text_encoder import padded_length
    from infinity_jax.inference.warmup import calls_of, mode_of
    from infinity_jax.runtime.hub import local_folder
    from infinity_jax.weights.model_folder import DEMO_FOLDER, read_configs

    folder = local_folder(args.checkpoint or DEMO_FOLDER, args.revision)
    configs = read_configs(folder)
    check_complete(configs, ('transformer', 'tokenizer', 'text'))
    if args.dtype is not None:
        transformer = dataclasses.replace(configs.transformer, dtype=args.dtype)
        configs = dataclasses.replace(configs, transformer=transformer)
    schedule = choose_schedule(
        configs.transformer,
        configs.tokenizer,
        configs.schedule,
        ratio=args.ratio,
        budget=args.budget,
        size=image_size_of(args),
    )
    length = padded_length(configs.transformer, args.text_length)
    mode = mode_of(sampling_of(args), quantization_of(args))
    negative = args.negative and mode.guided
    batch = min(args.num * args.prompts, args.max_batch or MAX_BATCH)
    calls = calls_of(configs, schedule, mode, batch, args.num, length, negative)
    programs = Programs(folder)
    for call in calls:
        start = time.perf_counter()
        path = programs.store(*call)
        size = path.stat().st_size / 1e6
        print(f'{path}: {size:.1f} MB in {time.perf_counter() - start:.1f} s')
