"""The command `infinity-jax bench`: speed of generation and training, and the device's limits."""

import argparse
import sys

from infinity_jax.tools.commands.device_flags import add_device_flags, mesh_of, on_devices
from infinity_jax.tools.commands.flag_types import check_positive, output_path
from infinity_jax.tools.commands.generation_flags import (
    BUDGETS,
    add_attention_flag,
    add_ratio_flags,
    image_size_line,
    ratio_of,
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench`."""
    parser.add_argument(
        'what',
        choices=['generate', 'tokenizer', 'train'],
        help='generate: text encoder, transformer and decoder; tokenizer: encoder and decoder; '
        'train: a training step of the transformer',
    )
    parser.add_argument(
        '--preset',
        default='125m',
        metavar='NAME',
        help='size of the transformer, or demo: that of the shipped model, with its text encoder; '
        'random weights (default: %(default)s)',
    )
    add_ratio_flags(parser, default='1:1')
    parser.add_argument(
        '--budget', default='0.06M', metavar='M', help=f'pixels: {BUDGETS} (default: %(default)s)'
    )
    parser.add_argument(
        '--batch', type=int, default=1, metavar='N', help='images per call (default: %(default)s)'
    )
    parser.add_argument(
        '--precision',
        choices=['float32', 'bfloat16'],
        default='bfloat16',
        help='of the products in transformer and text encoder (default: %(default)s)',
    )
    parser.add_argument(
        '--guidance',
        type=float,
        default=3.0,
        metavar='G',
        help='scale of classifier-free guidance; 1 switches it off (default: %(default)s)',
    )
    parser.add_argument(
        '--text-length',
        type=int,
        default=512,
        metavar='TOKENS',
        help='length that prompts are padded to (default: %(default)s)',
    )
    parser.add_argument(
        '--no-text-encoder',
        action='store_true',
        help='generate: leave out Flan-T5-XL (default: it is measured)',
    )
    add_attention_flag(parser)
    parser.add_argument(
        '--lora',
        type=int,
        default=0,
        metavar='RANK',
        help='train: adapters of this rank instead of the transformer (default: none)',
    )
    parser.add_argument(
        '--remat',
        default='none',
        metavar='POLICY',
        help='train: what the gradient recomputes, docs/scaling.md (default: %(default)s)',
    )
    parser.add_argument(
        '--no-bare',
        action='store_false',
        dest='bare',
        help='leave out the bare products, which take as long to compile (default: they run, on a '
        'CPU or one device)',
    )
    parser.add_argument(
        '--repeats',
        type=int,
        default=5,
        metavar='N',
        help='rounds that count (default: %(default)s)',
    )
    parser.add_argument(
        '--warmup',
        type=int,
        default=1,
        metavar='N',
        help='rounds before those that count (default: %(default)s)',
    )
    parser.add_argument(
        '--json',
        type=output_path,
        metavar='FILE',
        help='write all figures to this file (default: not written)',
    )
    parser.add_argument(
        '--plot',
        type=output_path,
        metavar='PNG',
        help='draw a bar chart of the stages and their bare products (default: not drawn)',
    )
    parser.add_argument(
        '--profile',
        type=output_path,
        metavar='DIR',
        help='write a profiler trace of one more run of each stage (default: not written)',
    )
    add_device_flags(parser)
    parser.set_defaults(run=on_devices(run))


def run(args: argparse.Namespace) -> None:
    """Measures, writes the files that flags name, and prints a table."""
    check_positive(args, 'batch', 'repeats', 'text_length')
    ratio = ratio_of(args)
    from infinity_jax.scales import ScaleSchedule, nearest_ratio
    from infinity_jax.sharding import is_first_process, lack_of_bfloat16
    from infinity_jax.tools.bench import report as bench_report
    from infinity_jax.tools.bench.inference import bench_generate, bench_tokenizer
    from infinity_jax.tools.bench.train import bench_train, use_training_devices
    from infinity_jax.tools.bench.workload import Workload
    from infinity_jax.transformer.card_dtype import check_dtype

    benches = {'generate': bench_generate, 'tokenizer': bench_tokenizer, 'train': bench_train}
    workload = Workload(
        preset=args.preset,
        ratio=nearest_ratio(1.0 if ratio is None else ratio),
        budget=args.budget,
        batch=args.batch,
        precision=args.precision,
        guidance=args.guidance,
        text_length=args.text_length,
        text_encoder=not args.no_text_encoder,
        attention=args.attention or 'auto',
        lora=args.lora,
        remat=args.remat,
    )
    if args.what == 'train' and args.devices is None and args.mesh is None:
        devices = use_training_devices(workload)
        args.devices = None if devices == 1 else str(devices)
    mesh = mesh_of(args)
    if args.what != 'tokenizer':
        lack = lack_of_bfloat16(mesh)
        check_dtype(args.precision, lack, 'precision', 'set --precision to float32')
    if ratio is not None:
        schedule = ScaleSchedule.for_image(workload.ratio, workload.budget)
        print(image_size_line(schedule.image_size(), schedule), file=sys.stderr)
    measured = benches[args.what](
        workload,
        mesh=mesh,
        repeats=args.repeats,
        warmup=args.warmup,
        profile=args.profile,
        bare=args.bare,
        devices=1 if mesh is None else mesh.devices.size,
    )
    if not is_first_process(mesh):
        return
    report = bench_report.report_of(args.what, workload, measured, mesh)
    if args.json:
        bench_report.write_json(args.json, report)
    if args.plot:
        bench_report.write_plot(args.plot, report)
    print(bench_report.table(report))
