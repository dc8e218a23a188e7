"""Arguments of `infinity-jax data …`; the work is done elsewhere."""

import argparse
import dataclasses
from typing import Any

from infinity_jax.errors import UserError


def add_data(parser: argparse.ArgumentParser) -> None:
    """The commands that look at a run's data."""
    commands = parser.add_subparsers(dest='data_command', required=True, metavar='COMMAND')
    inspect = commands.add_parser('inspect', help='buckets, captions, broken records, images')
    inspect.add_argument('--out', default='data.png', help='PNG file of the first images')
    inspect.add_argument('--count', type=int, default=64, help='images read and shown')
    inspect.set_defaults(run=run_inspect)
    speed = commands.add_parser('speed', help='how fast images are read and cut')
    speed.add_argument('--batches', type=int, default=30, help='batches that are timed')
    speed.set_defaults(run=run_speed)
    store = commands.add_parser(
        'precompute', help='run the frozen tokenizer and text encoder once, store their features'
    )
    store.add_argument('--out', required=True, metavar='DIR', help='a folder for each source in it')
    store.add_argument(
        '--split', default='train', choices=('train', 'held_out'), help='whose sources'
    )
    store.add_argument('--dtype', default='float32', help='of tokenizer features (float32)')
    store.add_argument('--text', default='', help='captions with features: all, whole or none')
    store.add_argument('--text-dtype', default='', help="of text features (the transformer's)")
    store.add_argument('--shard-records', type=int, default=1024, help='images a file (1024)')
    store.add_argument('--batch-per-device', type=int, default=8, help='images a call (8)')
    store.set_defaults(run=run_precompute)
    for command in (inspect, speed, store):
        command.add_argument(
            'config',
            metavar='FILE[:ARG]',
            help='such as configs/t2i.py:demo; --config.FIELD=VALUE changes it as in training',
        )
        command.set_defaults(overrides=())


def run_config(args: argparse.Namespace) -> Any:
    """The run that a config file and its overrides describe; raises `UserError` for a bad one."""
    from infinity_jax.tools.commands.config_flags import read_config_file
    from infinity_jax.training import init_from

    return init_from.run_config(read_config_file(args.config, args.overrides))


def run_inspect(args: argparse.Namespace) -> None:
    """Prints the report; writes the contact sheet."""
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
