"""The console command `infinity-jax`; a subcommand imports its heavy modules when it runs."""

import argparse
import io
import os
import re
import sys
from typing import NoReturn

from infinity_jax.errors import UserError
from infinity_jax.tools.commands import (
    bench_command,
    benchmark_commands,
    compile_command,
    convert_command,
    edit_command,
    evaluate_command,
    generate_command,
    plan_command,
    serve_command,
)
from infinity_jax.tools.commands.data_command import add_data
from infinity_jax.tools.commands.experiment_command import add_experiment
from infinity_jax.tools.commands.flag_types import input_path, local_outputs

DESCRIPTION = 'Infinity: bitwise autoregressive text-to-image models in JAX.'
EXAMPLES = """\
examples:
  infinity-jax generate "a red apple" --out apple.png
  infinity-jax generate "a red fox" --checkpoint models/infinity_2b --aspect-ratio 16:9
  infinity-jax edit apple.png "a ghost" --mask mask.png --out ghost.png
  infinity-jax train --config=configs/t2i.py:demo --config.run_dir=runs/demo
  infinity-jax COMMAND --help
"""


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong flag in one line, without the usage of all flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'error: {message}; {self.prog} --help lists the flags\n')


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and their flags."""
    parser = OneLineParser(
        prog='infinity-jax',
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        dest='command', required=True, title='commands', metavar='COMMAND'
    )
    add = lambda name, text: commands.add_parser(name, help=text, description=text)
    generate_command.add_flags(add('generate', 'Generate images from prompts.'))
    serve_command.add_flags(
        add('serve', "Serve models over HTTP: OpenAI's images API, and a page.")
    )
    edit_command.add_flags(
        add('edit', 'Edit an image: inpaint, outpaint, vary, or change it by words.')
    )
    train = add('train', 'Train a transformer or a tokenizer from a config file.')
    train.add_argument(
        'flags',
        nargs=argparse.REMAINDER,
        metavar='--config=FILE[:VARIANT] --config.FIELD=VALUE …',
        help='config file, such as configs/t2i.py:demo, and the fields to change in it; the same '
        'as python -m infinity_jax.main',
    )
    evaluate_command.add_kinds(add('evaluate', 'Measure the quality of a model.'))
    add_experiment(
        add('experiment', 'Train the points of an experiment with several seeds, and report them.')
    )
    add_data(add('data', 'Inspect, time or precompute the training data of a config file.'))
    convert_command.add_arguments(
        add('convert', 'Convert from and to PyTorch weights; merge LoRA adapters.')
    )
    compile_command.add_flags(
        add('compile', 'Store compiled programs in a model folder, so that generate starts faster.')
    )
    bench_command.add_flags(
        add('bench', 'Measure speed, and compare it with the matrix products alone.')
    )
    plan_command.add_flags(
        add('plan', 'Estimate memory and time of a run on TPUs or GPUs, without having them.')
    )
    _add_check(add('check', 'Compare every stage of a model with reference arrays.'))
    return parser


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'folder',
        type=input_path,
        metavar='DIR',
        help='folder of a model or a text encoder, with its reference arrays in arrays.npz',
    )
    parser.set_defaults(run=run_check)


def run_check(args: argparse.Namespace) -> None:
    """Prints a table; exits with 1 if a stage differs from its reference."""
    from infinity_jax.tools.parity.check import check_folder

    sys.exit(check_folder(args.folder))


def _take_overrides(args: argparse.Namespace, overrides: list[str]) -> None:
    if not hasattr(args, 'overrides'):
        command = ' '.join(filter(None, (args.command, getattr(args, 'what', None))))
        raise UserError(f'{overrides[0]}: {command} takes no fields of a config; leave it out')
    args.overrides = overrides


def _end_unread() -> None:
    """Exits quietly if the reader of stdout, such as head, has closed it."""
    try:
        print(flush=True)  # the buffer no longer holds the failed output
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def with_negative_values(argv: list[str]) -> list[str]:
    """Writes '--flag -1:2' as '--flag=-1:2', since argparse reads '-1:2' alone as a flag."""
    joined: list[str] = []
    for argument in argv:
        if re.match(r'-\d', argument) and joined and re.fullmatch(r'--[\w-]+', joined[-1]):
            joined[-1] += f'={argument}'
        else:
            joined.append(argument)
    return joined


def _prepare_process(argv: list[str], training: bool) -> None:
    """Restarts this process for training, and supervises it where it may be one of several."""
    from infinity_jax.runtime.host_memory import restart_with_tuned_allocator
    from infinity_jax.runtime.supervisor import supervise

    if training or argv[:2] == ['bench', 'train']:  # with the allocator of training
        restart_with_tuned_allocator()
    several = [['data', 'precompute'], *(['evaluate', name] for name in benchmark_commands.NAMES)]
    if training or argv[:2] in several:
        supervise()


def main(argv: list[str] | None = None) -> None:
    """Entry point. A `UserError` becomes one line and exit code 2."""
    typed = argv is None  # run from a shell, so this process may be restarted
    argv = sys.argv[1:] if argv is None else argv
    training = argv[:1] == ['train'] and argv[1:] not in (['-h'], ['--help'])
    if typed:
        _prepare_process(argv, training)
    if training:
        from infinity_jax.main import run as train

        train(['infinity-jax train', *argv[1:]])
    if typed and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # a file's name may be no UTF-8
    overrides = [argument for argument in argv if argument.startswith('--config.')]
    argv = [argument for argument in argv if argument not in overrides]
    args = build_parser().parse_args(with_negative_values(argv))
    try:
        if overrides:
            _take_overrides(args, overrides)
        from infinity_jax.runtime.compile_cache import use_compile_cache
        from infinity_jax.runtime.host_memory import use_most_of_gpu_memory

        use_most_of_gpu_memory()
        use_compile_cache()
        with local_outputs(args):
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
