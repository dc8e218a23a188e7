"""The console command `infinity-jax`. Heavy imports wait until a subcommand needs them."""

import argparse
import os
import sys
from typing import NoReturn

from infinity_jax.errors import UserError
from infinity_jax.tools.commands import (
    bench_command,
    compile_command,
    convert_command,
    evaluate_command,
    generate_command,
    plan_command,
)
from infinity_jax.tools.commands.config_flags import split_overrides
from infinity_jax.tools.commands.data_command import add_data
from infinity_jax.tools.commands.sampling_flags import add_sampling_flags


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the usage of all of them."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'error: {message}; {self.prog} --help lists the flags\n')


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and their flags."""
    parser = OneLineParser(
        prog='infinity-jax', description='Bitwise autoregressive text-to-image generation.'
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    add = lambda name, text: commands.add_parser(name, help=text, description=text)
    _add_generate(add('generate', 'Draw images from prompts.'))
    compiling = add('compile', "Store a model's compiled programs beside it, for quick starts.")
    compile_command.add_flags(compiling)
    compiling.set_defaults(run=compile_command.run)
    _add_check(add('check', 'Compare every stage with reference arrays in a folder.'))
    bench_command.add_flags(add('bench', 'Measure speed beside the limits of the device.'))
    evaluate_command.add_kinds(add('evaluate', 'Measure how well a model draws.'))
    convert_command.add_arguments(
        add('convert', 'Read and write PyTorch files, merge LoRA adapters.')
    )
    add_data(add('data', 'Look at the data of a run.'))
    plan_command.add_flags(add('plan', 'What a run would take on a TPU slice, without one.'))
    train = add('train', 'Train what a config file says; same as python -m infinity_jax.main.')
    train.add_argument('flags', nargs=argparse.REMAINDER, help='--config=FILE --config.FIELD=VALUE')
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    generate_command.add_flags(parser)
    add_sampling_flags(parser)
    parser.set_defaults(run=generate_command.run)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', help='model or text encoder beside its reference arrays')
    parser.set_defaults(run=run_check)


def run_check(args: argparse.Namespace) -> None:
    """Prints the table; exits with 1 where a stage is off."""
    from infinity_jax.tools.parity.check import check_folder

    sys.exit(check_folder(args.folder))


def _take_overrides(args: argparse.Namespace, overrides: list[str]) -> None:
    if not hasattr(args, 'overrides'):
        command = ' '.join(filter(None, (args.command, getattr(args, 'what', None))))
        raise UserError(f'{overrides[0]}: {command} takes no fields of a config; leave it out')
    args.overrides = overrides


def _end_unread() -> None:
    """Ends quietly if it is stdout whose reader, such as head, has seen enough and left."""
    try:
        print(flush=True)  # what broke before is gone from its buffer
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def main(argv: list[str] | None = None) -> None:
    """Entry point. Errors of the user become one line and exit code 2."""
    typed = argv is None  # by a user, so that this process is ours to restart
    argv = sys.argv[1:] if typed else argv
    if argv[:1] == ['train'] and argv[1:] not in (['-h'], ['--help']):
        if typed:
            from infinity_jax.runtime.host_memory import restart_with_tuned_allocator
            from infinity_jax.runtime.supervisor import supervise

            restart_with_tuned_allocator()
            supervise()
        from infinity_jax.main import run as train

        train(['infinity-jax train', *argv[1:]])
    if typed and argv[:2] == ['data', 'precompute']:  # may be one of several processes, too
        from infinity_jax.runtime.supervisor import supervise

        supervise()
    argv, overrides = split_overrides(argv)
    args = build_parser().parse_args(argv)
    try:
        if overrides:
            _take_overrides(args, overrides)
        from infinity_jax.runtime.compile_cache import use_compile_cache

        use_compile_cache()
        args.run(args)
        sys.stdout.flush()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        _end_unread()
        raise


if __name__ == '__main__':
    main()
