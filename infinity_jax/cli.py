"""The console command `infinity-jax`. Heavy imports wait until a subcommand needs them."""

import argparse
import os
import sys
from typing import NoReturn

from infinity_jax.commands import (
    bench_command,
    compile_command,
    convert_command,
    generate_command,
    plan_command,
)
from infinity_jax.commands.config_flags import split_overrides
from infinity_jax.commands.data_command import add_data, add_loss, run_loss
from infinity_jax.commands.model_flags import add_saving_flags, economy_of
from infinity_jax.commands.sampling_flags import add_sampling_flags, sampling_of
from infinity_jax.config import UserError


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
    _add_generate(add('generate', 'Draw pictures from prompts.'))
    compiling = add('compile', "Store a model's compiled programs beside it, for quick starts.")
    compile_command.add_flags(compiling)
    compiling.set_defaults(run=compile_command.run)
    _add_check(add('check', 'Compare every stage with reference arrays in a folder.'))
    bench_command.add_flags(add('bench', 'Measure speed beside the limits of the device.'))
    _add_evaluate(add('evaluate', 'Measure how well a model draws.'))
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


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'what',
        choices=['demo', 'loss', 'tokenizer'],
        help='demo: emoji and backgrounds by the matcher; loss: on held-out data; tokenizer: '
        'reconstructions and bits',
    )
    parser.add_argument('--count', type=int, default=500, help='captions of each kind of pairs')
    parser.add_argument('--subset', help='starter, demo or all; default: what it was trained on')
    parser.add_argument('--out', default='.', help='folder for tables (JSON) and pictures')
    add_sampling_flags(parser)
    add_loss(parser)
    add_saving_flags(parser)
    only = parser.add_argument_group('tokenizer only')
    only.add_argument('--data', default='emoji', help='emoji, or a folder of pictures')
    only.add_argument('--size', type=int, default=0, metavar='N', help='pixels of an edge')
    only.add_argument('--vgg', default='', metavar='FILE', help="torchvision's VGG-16, for LPIPS")
    only.add_argument('--lpips-heads', default='', metavar='FILE', help='heads of LPIPS')
    only.add_argument('--features', default='', metavar='NPZ', help='for the Fréchet distance')
    parser.set_defaults(run=run_evaluate)


def run_check(args: argparse.Namespace) -> None:
    """Prints the table; exits with 1 where a stage is off."""
    from infinity_jax.parity.check import check_folder

    sys.exit(check_folder(args.folder))


def run_evaluate(args: argparse.Namespace) -> None:
    """Prints the matcher's table, that of the loss, or the tokenizer's."""
    if args.what == 'loss':
        return run_loss(args)
    if args.what == 'tokenizer':
        from infinity_jax.evaluation.tokenizer import run as run_tokenizer

        return run_tokenizer(args)
    from infinity_jax.evaluation.demo import evaluate_demo
    from infinity_jax.pipeline import DEMO_FOLDER
    from infinity_jax.weights.hub import local_folder

    evaluate_demo(
        local_folder(args.checkpoint or DEMO_FOLDER),
        count=args.count,
        subset=args.subset,
        seed=args.seed,
        sampling=sampling_of(args),
        economy=economy_of(args),
        out=args.out,
    )


def _take_overrides(args: argparse.Namespace, overrides: list[str]) -> None:
    what = getattr(args, 'what', None)
    if not hasattr(args, 'overrides') or what not in (None, 'loss'):
        command = ' '.join(filter(None, (args.command, what)))
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
            from infinity_jax.host_memory import restart_with_tuned_allocator
            from infinity_jax.supervisor import supervise

            restart_with_tuned_allocator()
            supervise()
        from infinity_jax.main import run as train

        train(['infinity-jax train', *argv[1:]])
    if typed and argv[:2] == ['data', 'precompute']:  # may be one of several processes, too
        from infinity_jax.supervisor import supervise

        supervise()
    argv, overrides = split_overrides(argv)
    args = build_parser().parse_args(argv)
    try:
        if overrides:
            _take_overrides(args, overrides)
        from infinity_jax.compile_cache import use_compile_cache

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
