"""The console command `infinity-jax`. Heavy imports wait until a subcommand needs them."""

import argparse
import pathlib
import sys
from typing import Any

from infinity_jax.config import UserError


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and their flags."""
    parser = argparse.ArgumentParser(
        prog='infinity-jax', description='Bitwise autoregressive text-to-image generation.'
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    add = lambda name, text: commands.add_parser(name, help=text, description=text)
    _add_generate(add('generate', 'Draw pictures from prompts.'))
    _add_check(add('check', 'Compare every stage with reference arrays in a folder.'))
    _add_evaluate(add('evaluate', 'Measure how well a model draws.'))
    train = add('train', 'Train what a config file says; same as python -m infinity_jax.main.')
    train.add_argument('flags', nargs=argparse.REMAINDER, help='--config=FILE --config.FIELD=VALUE')
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--cfg', type=numbers, metavar='G', help='guidance, one number or one a scale: 3 or 1,2,3,3'
    )
    parser.add_argument(
        '--tau', type=numbers, metavar='T', help='temperature, one number or one a scale'
    )
    parser.add_argument('--top-k', type=int, metavar='K', help='1: greedy')
    parser.add_argument(
        '--top-p', type=float, metavar='P', help='bits of probability up to 1 - P are never drawn'
    )
    parser.add_argument(
        '--cfg-layer', type=int, metavar='N', help='-n: guide hidden states, n layers from the end'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--checkpoint', metavar='DIR', help='model folder; default: the demo')


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('prompts', nargs='*', help='what the pictures show')
    parser.add_argument('--prompts-file', metavar='FILE', help='one prompt a line')
    parser.add_argument('--num', type=int, default=1, help='pictures per prompt')
    parser.add_argument('--negative', metavar='TEXT', help='what the pictures should not show')
    parser.add_argument(
        '--out', default='picture.png', help='PNG file; several pictures get a number each'
    )
    _add_sampling(parser)
    parser.set_defaults(run=run_generate)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', help='model or text encoder beside its reference arrays')
    parser.set_defaults(run=run_check)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'what',
        choices=['demo', 'tokenizer'],
        help='demo: emoji and backgrounds by the matcher; tokenizer: reconstructions and bits',
    )
    parser.add_argument('--count', type=int, default=500, help='captions of each kind of pairs')
    parser.add_argument('--subset', help='starter, demo or all; default: what it was trained on')
    parser.add_argument('--out', default='.', help='folder for tables (JSON) and pictures')
    only = parser.add_argument_group('tokenizer only')
    only.add_argument('--data', default='emoji', help='emoji, or a folder of pictures')
    only.add_argument('--size', type=int, default=0, metavar='N', help='pixels of an edge')
    only.add_argument('--vgg', default='', metavar='FILE', help="torchvision's VGG-16, for LPIPS")
    only.add_argument('--lpips-heads', default='', metavar='FILE', help='heads of LPIPS')
    only.add_argument('--features', default='', metavar='NPZ', help='for the Fréchet distance')
    _add_sampling(parser)
    parser.set_defaults(run=run_evaluate)


def numbers(text: str) -> tuple[float, ...]:
    """'3' or '1,2,3' as numbers."""
    return tuple(float(part) for part in text.split(','))


def sampling_of(args: argparse.Namespace) -> Any:
    """The sampling settings that flags change, defaults otherwise."""
    from infinity_jax.sampling import SamplingConfig

    fields = {
        'guidance': args.cfg,
        'temperature': args.tau,
        'top_k': args.top_k,
        'top_p': args.top_p,
        'guidance_layer': args.cfg_layer,
    }
    return SamplingConfig(**{name: value for name, value in fields.items() if value is not None})


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
        raise UserError('no prompt given; write what the picture should show, or --prompts-file')
    if not all(prompt.strip() for prompt in prompts):
        raise UserError('a prompt is empty; write what the picture should show')
    return prompts


def output_paths(out: str, count: int) -> list[pathlib.Path]:
    """OUT itself for one picture; else OUT with _000, _001, … before its ending."""
    path = pathlib.Path(out)
    if path.suffix.lower() != '.png':
        raise UserError(f'--out {out} does not end in .png; pictures are written as PNG')
    if count == 1:
        return [path]
    return [path.with_name(f'{path.stem}_{i:03}{path.suffix}') for i in range(count)]


def run_generate(args: argparse.Namespace) -> None:
    """Draws and writes PNGs that remember how they were made."""
    prompts = read_prompts(args)
    if args.num < 1:
        raise UserError(f'--num is {args.num}; wanted 1 or more')
    paths = output_paths(args.out, len(prompts) * args.num)
    from infinity_jax.pictures import save_png
    from infinity_jax.pipeline import DEMO_FOLDER, InfinityPipeline

    sampling = sampling_of(args)
    folder = args.checkpoint or DEMO_FOLDER
    pipeline = InfinityPipeline.from_pretrained(folder)
    drawn = pipeline(
        prompts, num=args.num, seed=args.seed, negative=args.negative, sampling=sampling
    )
    for i, (path, image) in enumerate(zip(paths, drawn.images, strict=True)):
        metadata = {
            'prompt': drawn.prompts[i],
            'negative': args.negative or '',
            'seed': drawn.seeds[i][0],
            'index': drawn.seeds[i][1],
            'guidance': ','.join(map(str, sampling.guidance)),
            'temperature': ','.join(map(str, sampling.temperature)),
            'top_k': sampling.top_k,
            'top_p': sampling.top_p,
            'guidance_layer': sampling.guidance_layer,
            'model': args.checkpoint or 'demo',
        }
        save_png(path, image, metadata)
        print(path)


def run_check(args: argparse.Namespace) -> None:
    """Prints the table; exits with 1 where a stage is off."""
    from infinity_jax.check import check_folder

    sys.exit(check_folder(args.folder))


def run_evaluate(args: argparse.Namespace) -> None:
    """Prints the matcher's table, or the tokenizer's."""
    if args.what == 'tokenizer':
        from infinity_jax.evaluate_tokenizer import run as run_tokenizer

        return run_tokenizer(args)
    from infinity_jax.evaluate import evaluate_demo
    from infinity_jax.pipeline import DEMO_FOLDER

    evaluate_demo(
        args.checkpoint or DEMO_FOLDER,
        count=args.count,
        subset=args.subset,
        seed=args.seed,
        sampling=sampling_of(args),
        out=args.out,
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point. Errors of the user become one line and exit code 2."""
    typed = argv is None  # by a user, so that this process is ours to restart
    argv = sys.argv[1:] if typed else argv
    if argv[:1] == ['train'] and argv[1:] not in (['-h'], ['--help']):
        from infinity_jax.host_memory import restart_with_tuned_allocator

        if typed:
            restart_with_tuned_allocator()
        from infinity_jax.main import run as train

        train(['infinity-jax train', *argv[1:]])
    args = build_parser().parse_args(argv)
    try:
        from infinity_jax.compile_cache import use_compile_cache

        use_compile_cache()
        args.run(args)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
