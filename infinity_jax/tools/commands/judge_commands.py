"""Judges of generated images in `infinity-jax evaluate`: score, fid, clip and text."""

import argparse
import pathlib
import sys
from collections.abc import Callable

from infinity_jax.tools.commands.flag_types import local_path


def add_kinds(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Adds the command of each judge."""
    parser = add('score', 'Score the images of ImageReward or HPSv2 by their own packages.')
    _add_folder(parser, 'evaluate imagereward or hpsv2', run_score)
    parser.add_argument(
        '--python',
        default=sys.executable,
        type=local_path,
        metavar='FILE',
        help='Python that has the package image-reward or hpsv2 (default: the present one)',
    )
    parser = add('fid', 'FID, KID, precision and recall of pred/ against gt/, by torch-fidelity.')
    _add_folder(parser, 'evaluate captions, with pred/ and gt/', run_fid)
    parser.add_argument(
        '--inception',
        required=True,
        type=local_path,
        metavar='FILE',
        help='weights of the network: weights-inception-2015-12-05-6726825d.pth',
    )
    parser = add('clip', 'CLIP score: how well each image agrees with its prompt.')
    _add_folder(parser, 'evaluate captions, geneval, imagereward or hpsv2', run_clip)
    parser.add_argument(
        '--model',
        required=True,
        type=local_path,
        metavar='DIR',
        help='folder of a CLIP model, such as a copy of openai/clip-vit-large-patch14',
    )
    parser = add('text', 'How much of the text that prompts ask for is read in the images, by OCR.')
    _add_folder(parser, 'evaluate captions, or of another benchmark', run_text)


def _add_folder(
    parser: argparse.ArgumentParser, of: str, run: Callable[[argparse.Namespace], None]
) -> None:
    parser.add_argument('folder', type=local_path, metavar='DIR', help=f'folder of {of}')
    parser.set_defaults(run=run)


def run_score(args: argparse.Namespace) -> None:
    """Writes a score per image; prints the file."""
    from infinity_jax.tools.evaluation.judges.rewards import score_folder

    print(score_folder(pathlib.Path(args.folder), args.python))


def run_fid(args: argparse.Namespace) -> None:
    """Prints the calibration, then the figures."""
    from infinity_jax.tools.evaluation.judges.inception import FILE, evaluate_fid

    folder = pathlib.Path(args.folder)
    evaluate_fid(folder, pathlib.Path(args.inception))
    _print_table(folder / FILE)


def run_clip(args: argparse.Namespace) -> None:
    """Prints the calibration, then the score."""
    from infinity_jax.tools.evaluation.judges.clip import FILE, evaluate_clip

    folder = pathlib.Path(args.folder)
    evaluate_clip(folder, pathlib.Path(args.model))
    _print_table(folder / FILE)


def run_text(args: argparse.Namespace) -> None:
    """Prints the calibration, then the shares of text."""
    from infinity_jax.tools.evaluation.judges.text import FILE, evaluate_text

    folder = pathlib.Path(args.folder)
    evaluate_text(folder)
    _print_table(folder / FILE)


def _print_table(path: pathlib.Path) -> None:
    from infinity_jax.tools.evaluation.report.find import read_results
    from infinity_jax.tools.evaluation.report.report import table

    results = read_results(path)
    assert results is not None
    print(table(results))
