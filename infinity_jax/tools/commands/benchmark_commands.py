"""The benchmarks of `infinity-jax evaluate`: geneval, dpg, and so on, and report."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.device_flags import add_local_device_flags, local_mesh_of
from infinity_jax.tools.commands.flag_types import check_positive, input_path, local_path
from infinity_jax.tools.commands.generation_flags import (
    add_image_size_flags,
    add_model_flags,
    add_quantization_flags,
    add_sampling_flags,
    model_options_of,
    quantization_of,
    sampling_of,
)

if TYPE_CHECKING:
    from infinity_jax.tools.evaluation.benchmarks.settings import BenchmarkOptions

GUIDANCE, TEMPERATURE = 4.0, 1.0  # with which the published figures were measured
STOPPED = 130  # exit code: 128 + SIGINT


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the commands differ in, for their help.

    Attributes:
      summary: of the command.
      prompts: the prompt file.
      num: images per prompt.
      seeds: see `BenchmarkOptions`.
      judge: the command that scores the images; {out} and {edge} are replaced.
    """

    summary: str
    prompts: str
    num: int
    seeds: str
    judge: str


KINDS = {
    'geneval': Kind(
        'Generate the images of GenEval: objects, counts, colours and positions.',
        'evaluation_metadata.jsonl of GenEval',
        4,
        'prompt',
        'python evaluation/evaluate_images.py {out} --outfile {out}/results.jsonl --model-path '
        'DETECTOR',
    ),
    'dpg': Kind(
        'Generate the images of DPG-Bench: long prompts, four images as a grid.',
        'folder of NAME.txt, or dpg_bench.csv, of DPG-Bench',
        4,
        'prompt',
        'accelerate launch dpg_bench/compute_dpg_bench.py --image-root-path {out}/images '
        '--resolution {edge} --pic-num 4 --res-path {out}/dpg_results.txt',
    ),
    'imagereward': Kind(
        'Generate the images of ImageReward: prompts of users, ten images each.',
        'benchmark-prompts.json of ImageReward',
        10,
        'prompt',
        'python evaluation/image_reward/cal_imagereward.py --meta_file {out}/metadata.jsonl',
    ),
    'hpsv2': Kind(
        'Generate the images of HPSv2: four styles.',
        'folder with anime.json, concept-art.json, paintings.json and photo.json of HPSv2, or one '
        'JSON object of all',
        1,
        'image',
        "python -c \"import hpsv2; hpsv2.evaluate('{out}/images', hps_version='v2.1')\" | tee "
        '{out}/hpsv2.txt',
    ),
    'captions': Kind(
        'Generate an image per caption, for FID and CLIP score.',
        'JSON lines with text and, to compare with true images, image_path',
        1,
        'image',
        'infinity-jax evaluate fid {out} --inception FILE; '
        'infinity-jax evaluate clip {out} --model DIR',
    ),
}
NAMES = tuple(KINDS)


def add_kinds(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Adds the commands of all benchmarks, and that of the report."""
    for name, kind in KINDS.items():
        _add_benchmark(add(name, kind.summary), name, kind)
    _add_report(add('report', 'Tables of the scores of judges, next to published figures.'))


def _add_benchmark(parser: argparse.ArgumentParser, name: str, kind: Kind) -> None:
    parser.add_argument(
        '--prompts',
        required=True,
        type=input_path,
        metavar='FILE',
        help=f'{kind.prompts}; your own copy',
    )
    parser.add_argument(
        '--out',
        required=True,
        type=local_path,
        metavar='DIR',
        help='new folder, or one of the same command that was interrupted: it goes on',
    )
    parser.add_argument(
        '--rewritten',
        type=input_path,
        metavar='FILE',
        help='JSON object from prompts to rewritten prompts, which the model reads instead; the '
        'judge still gets the prompts (default: prompts as they are)',
    )
    parser.add_argument(
        '--num',
        type=int,
        default=kind.num,
        metavar='N',
        help='images per prompt (default: %(default)s, as published)',
    )
    parser.add_argument(
        '--seeds',
        choices=['prompt', 'image'],
        default=kind.seeds,
        help='prompt: random numbers start again with each prompt; image: each image has its own '
        '(default: %(default)s, as in the released scripts)',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='print the number of images, disk space and time alone (default: generate)',
    )
    parser.add_argument(
        '--max-batch',
        type=int,
        metavar='N',
        help='images per device generated at the same time, at most (default: 16)',
    )
    parser.add_argument(
        '--split-weights',
        action='store_true',
        help='the same as --mesh fsdp=-1, for models too large for one device (default: each has '
        'all weights)',
    )
    parser.add_argument(
        '--text-length',
        type=int,
        metavar='TOKENS',
        help='prompts are padded to it and cut at it (default: all that the model reads)',
    )
    add_model_flags(parser)
    add_image_size_flags(parser)
    add_sampling_flags(parser, GUIDANCE, TEMPERATURE)
    add_quantization_flags(parser)
    add_local_device_flags(parser)
    parser.set_defaults(run=run_benchmark, benchmark=name)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'folder',
        type=local_path,
        metavar='DIR',
        help='folder of a benchmark, with the results of judges',
    )
    parser.set_defaults(run=run_report)


def run_benchmark(args: argparse.Namespace) -> None:
    """Generates the images that are missing; prints the command of the judge."""
    from infinity_jax.runtime.distributed import join_processes
    from infinity_jax.runtime.exit_codes import one_line_endings
    from infinity_jax.tools.commands.generate_command import plain_warnings

    check_positive(args, 'num', 'max_batch')
    if args.split_weights:
        if args.mesh is not None:
            raise UserError('--split-weights and --mesh are both given; give one of them')
        args.mesh = 'fsdp=-1'
    with one_line_endings(), plain_warnings():
        join_processes()
        try:
            _generate(args)
        except KeyboardInterrupt:
            print('stopped; the same command goes on with the missing images', file=sys.stderr)
            sys.exit(STOPPED)


def _generate(args: argparse.Namespace) -> None:
    import jax

    from infinity_jax.tools.evaluation.benchmarks.generate import generate_missing
    from infinity_jax.tools.evaluation.benchmarks.layout import read_rewritten
    from infinity_jax.tools.evaluation.benchmarks.plan import plan_run, settings_of
    from infinity_jax.tools.evaluation.benchmarks.readers import READERS

    out = pathlib.Path(args.out)
    benchmark = READERS[args.benchmark](pathlib.Path(args.prompts), args.num, out)
    texts = {}
    if args.rewritten:
        texts = read_rewritten(args.rewritten, [item.prompt for item in benchmark.items])
    plan = plan_run(benchmark, options_of(args), out, texts)
    settings = settings_of(plan, args.prompts, args.rewritten)
    if args.dry_run:
        from infinity_jax.tools.evaluation.benchmarks.dry_run import dry_run_lines
        from infinity_jax.tools.evaluation.benchmarks.settings import continues

        continues(out, settings)
        if jax.process_index() == 0:
            print('\n'.join(dry_run_lines(plan)))
        return
    new = generate_missing(plan, settings)
    if jax.process_index() == 0:
        images = len(benchmark.items) * benchmark.num
        share = '' if jax.process_count() == 1 else ' by this process'
        print(f'{out}: {images} images, {new} of them generated now{share}')
        edge = plan.image_size[1]
        print(f'judge:  {KINDS[args.benchmark].judge.format(out=out.absolute(), edge=edge)}')
        print(f'report: infinity-jax evaluate report {out}')


def options_of(args: argparse.Namespace) -> 'BenchmarkOptions':
    """The settings that the flags of a benchmark command give."""
    from infinity_jax.runtime.hub import DEMO_FOLDER
    from infinity_jax.tools.evaluation.benchmarks.settings import BenchmarkOptions

    args.cfg = args.cfg or (GUIDANCE,)
    args.tau = args.tau or (TEMPERATURE,)
    return BenchmarkOptions(
        checkpoint=args.checkpoint or str(DEMO_FOLDER),
        revision=args.revision,
        model=model_options_of(args),
        text_length=args.text_length,
        max_batch=args.max_batch,
        mesh=local_mesh_of(args),
        sampling=sampling_of(args),
        quantization=quantization_of(args),
        seed=args.seed,
        seeds=args.seeds,
    )


def run_report(args: argparse.Namespace) -> None:
    """Prints the tables; exits with 2 if a file cannot be read."""
    from infinity_jax.tools.evaluation.report.report import write_report

    problems = write_report(pathlib.Path(args.folder))
    for line in problems:
        print(f'error: {line}', file=sys.stderr)
    if problems:
        sys.exit(2)
