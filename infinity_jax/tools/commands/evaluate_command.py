"""The command `infinity-jax evaluate`: a demo's images, a model's loss, a tokenizer's."""

import argparse

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.data_command import run_config
from infinity_jax.tools.commands.model_flags import add_saving_flags, quantization_of
from infinity_jax.tools.commands.sampling_flags import add_sampling_flags, sampling_of

CHECKPOINT = 'model folder; default: the demo'


def add_kinds(parser: argparse.ArgumentParser) -> None:
    """What can be measured, each with flags of its own."""
    kinds = parser.add_subparsers(dest='what', required=True, metavar='WHAT')
    add = lambda name, text: kinds.add_parser(name, help=text, description=text)
    _add_demo(add('demo', 'Emoji and backgrounds of drawn images, by the matcher.'))
    _add_loss(add('loss', 'Loss and bit accuracy on held-out data, by scale.'))
    _add_tokenizer(add('tokenizer', 'Fidelity of reconstructions and use of bits, by scale.'))


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--count', type=int, default=500, help='captions of each kind of pairs')
    parser.add_argument('--subset', help='starter, demo or all; default: what it was trained on')
    parser.add_argument('--out', default='.', metavar='DIR', help='for the table and a sheet')
    add_sampling_flags(parser)
    add_saving_flags(parser)
    parser.set_defaults(run=run_demo)


def _add_loss(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--checkpoint', metavar='DIR', help=CHECKPOINT)
    parser.add_argument(
        '--config',
        required=True,
        metavar='FILE[:ARG]',
        help='whose held-out data is read; --config.FIELD=VALUE changes it as in training',
    )
    parser.add_argument('--batches', type=int, default=16, help='held-out batches')
    parser.set_defaults(run=run_loss, overrides=())


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    def add(flag: str, metavar: str, help: str) -> None:
        parser.add_argument(flag, type=_path, metavar=metavar, help=help)

    add('--checkpoint', 'DIR', 'model folder, run folder or checkpoint of a run; default: the demo')
    add('--data', 'DIR', 'a folder of images; default: held-out emoji')
    parser.add_argument(
        '--subset', help='of the emoji: starter, demo or all; default: what it was trained on'
    )
    parser.add_argument('--count', type=int, default=500, metavar='N', help='images (500)')
    parser.add_argument('--size', type=int, default=0, metavar='N', help='pixels of an edge')
    add('--vgg', 'FILE', "torchvision's VGG-16, for LPIPS")
    add('--lpips-heads', 'FILE', 'heads of LPIPS')
    add('--features', 'NPZ', 'originals and reconstructions (N, D), for the Fréchet distance')
    add('--save', 'DIR', 'originals and reconstructions as PNGs, in DIR/gt and DIR/pred')
    add('--out', 'DIR', 'for table, image strip and plot; default: evaluation in the run folder')
    parser.set_defaults(run=run_tokenizer)


def _path(text: str) -> str:
    """An unset variable of a shell must not mean the current folder, or the default."""
    if not text:
        raise argparse.ArgumentTypeError("'' names nothing; name a path or leave the flag out")
    return text


def run_demo(args: argparse.Namespace) -> None:
    """Prints the matcher's table."""
    from infinity_jax.runtime.hub import local_folder
    from infinity_jax.training.transformer.demo_evaluation import evaluate_demo
    from infinity_jax.weights.model_folder import DEMO_FOLDER

    evaluate_demo(
        local_folder(args.checkpoint or DEMO_FOLDER),
        count=args.count,
        subset=args.subset,
        seed=args.seed,
        sampling=sampling_of(args),
        quantization=quantization_of(args),
        out=args.out,
    )


def run_loss(args: argparse.Namespace) -> None:
    """Prints the loss table."""
    from infinity_jax.tools.evaluation.loss import evaluate_loss
    from infinity_jax.weights.model_folder import DEMO_FOLDER

    config = run_config(args)
    if config.task != 't2i':
        raise UserError(f'--config {args.config} is of task {config.task}; wanted a t2i run')
    evaluate_loss(args.checkpoint or DEMO_FOLDER, config, num_batches=args.batches)


def run_tokenizer(args: argparse.Namespace) -> None:
    """Prints the tokenizer's table."""
    from infinity_jax.tools.evaluation.tokenizer import EMOJI, evaluate_tokenizer
    from infinity_jax.weights.model_folder import DEMO_FOLDER

    evaluate_tokenizer(
        args.checkpoint or DEMO_FOLDER,
        data=args.data or EMOJI,
        subset=args.subset or '',
        count=args.count,
        size=args.size,
        vgg=args.vgg or '',
        heads=args.lpips_heads or '',
        features=args.features or '',
        save=args.save or '',
        out=args.out or '',
    )
