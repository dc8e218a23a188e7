"""The command `infinity-jax data`: inspects, times and precomputes the data of a run."""

import argparse
import dataclasses
import pathlib
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.flag_types import local_path, path


def add_data(parser: argparse.ArgumentParser) -> None:
    """The commands that read a run's data, each with its flags."""
    commands = parser.add_subparsers(
        dest='data_command', required=True, title='commands', metavar='COMMAND'
    )
    add = lambda name, text: commands.add_parser(name, help=text, description=text)
    inspect = add('inspect', 'Print buckets, captions and broken records; show some images.')
    inspect.add_argument(
        '--out',
        default='data.png',
        type=path,
        metavar='PNG',
        help='contact sheet of the first images (default: %(default)s)',
    )
    inspect.add_argument(
        '--count',
        type=int,
        default=64,
        metavar='N',
        help='images that are read and shown (default: %(default)s)',
    )
    inspect.set_defaults(run=run_inspect)
    speed = add('speed', 'Measure how many images per second are read, resized and cropped.')
    speed.add_argument(
        '--batches',
        type=int,
        default=30,
        metavar='N',
        help='batches that are timed (default: %(default)s)',
    )
    speed.set_defaults(run=run_speed)
    store = add(
        'precompute', 'Run the frozen tokenizer and text encoder once and store their features.'
    )
    _add_precompute(store)
    for command in (inspect, speed, store):
        command.add_argument(
            'config',
            type=local_path,
            metavar='FILE[:VARIANT]',
            help='config file, such as configs/t2i.py:demo; --config.FIELD=VALUE changes a field '
            'as in training'
            + ('. Or a folder of images, whose layout is recognised' if command is inspect else ''),
        )
        command.set_defaults(overrides=())


def _add_precompute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--out',
        required=True,
        type=local_path,
        metavar='DIR',
        help='gets a folder of features for each source',
    )
    parser.add_argument(
        '--split',
        default='train',
        choices=('train', 'held_out'),
        help='whose sources are read (default: %(default)s)',
    )
    parser.add_argument(
        '--dtype',
        default='float32',
        metavar='D',
        help='of the stored tokenizer features: float32, bfloat16 or float16 (default: '
        '%(default)s)',
    )
    parser.add_argument(
        '--text',
        default='',
        metavar='WHICH',
        help='captions whose text features are stored: all, whole or none (default: all, or none '
        'if the text encoder is trained)',
    )
    parser.add_argument(
        '--text-dtype',
        default='',
        metavar='D',
        help="of the stored text features (default: the transformer's)",
    )
    parser.add_argument(
        '--shard-records',
        type=int,
        default=1024,
        metavar='N',
        help='images per file (default: %(default)s)',
    )
    parser.add_argument(
        '--batch-per-device',
        type=int,
        default=8,
        metavar='N',
        help='images per call and device (default: %(default)s)',
    )
    parser.set_defaults(run=run_precompute)


def run_config(args: argparse.Namespace) -> Any:
    """The run that a config file and its overrides describe; raises `UserError` for a bad one."""
    from infinity_jax.tools.commands.config_flags import read_config_file
    from infinity_jax.training import init_from

    return init_from.run_config(read_config_file(args.config, args.overrides))


def run_inspect(args: argparse.Namespace) -> None:
    """Prints the report; writes the contact sheet."""
    path = pathlib.Path(args.config)
    if path.exists() and path.suffix != '.py':
        from infinity_jax.tools.inspect_layout import inspect_layout

        if args.overrides:
            raise UserError(f'{args.overrides[0]}: {path} is no config file; leave it out')
        inspect_layout(path, count=args.count, out=args.out)
        return
    from infinity_jax.tools.inspect_data import inspect_data

    inspect_data(run_config(args), count=args.count, out=args.out)


def run_speed(args: argparse.Namespace) -> None:
    """Prints images per second."""
    from infinity_jax.tools.inspect_data import measure_speed

    measure_speed(run_config(args), args.batches)


def run_precompute(args: argparse.Namespace) -> None:
    """Stores features; prints how a config names them."""
    from infinity_jax.runtime.distributed import join_processes
    from infinity_jax.runtime.exit_codes import one_line_endings

    with one_line_endings():
        config = run_config(args)
        if config.task != 't2i':
            raise UserError(f'{args.config} is of task {config.task}; wanted a t2i run')
        join_processes()
        import jax

        from infinity_jax.tools.precompute import Precompute, precompute

        names = [field.name for field in dataclasses.fields(Precompute)]
        options = Precompute(**{name: getattr(args, name) for name in names})
        folders = precompute(config, args.out, options)
        if jax.process_index() == 0:
            for source, folder in zip(config.data.sources_of(args.split), folders, strict=True):
                named = {'kind': 'features', 'path': str(folder.absolute())}
                print(f'{named | {"weight": source.weight}},')
