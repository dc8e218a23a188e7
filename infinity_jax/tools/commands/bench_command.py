"""The command `infinity-jax bench`: how fast this device draws or trains, beside its limits."""

import argparse

from infinity_jax.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench`."""
    parser.add_argument(
        'what', choices=['generate', 'tokenizer', 'train'], help='which program is measured'
    )
    parser.add_argument('--preset', default='125m', help='sizes; the weights are random')
    parser.add_argument('--ratio', default='1.000', metavar='R', help='height/width')
    parser.add_argument('--budget', default='0.06M', metavar='M', help='0.06M, 0.25M, 0.60M or 1M')
    parser.add_argument('--batch', type=int, default=1, metavar='N', help='images at once')
    parser.add_argument('--precision', choices=['float32', 'bfloat16'], default='bfloat16')
    parser.add_argument('--guidance', type=float, default=3.0, help='1 leaves it out')
    parser.add_argument(
        '--text-length', type=int, default=512, metavar='T', help='tokens of padded prompts'
    )
    parser.add_argument(
        '--no-text-encoder', action='store_true', help='leave out Flan-T5-XL (generate)'
    )
    parser.add_argument('--repeats', type=int, default=5, help='rounds that count')
    parser.add_argument('--warmup', type=int, default=1, help='rounds before them')
    parser.add_argument('--json', metavar='FILE', help='all figures')
    parser.add_argument('--plot', metavar='PNG', help='bars of stages and their bare products')
    parser.add_argument('--profile', metavar='DIR', help='trace of one more run of each stage')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measures, writes what was asked for, and prints a table."""
    for name in ('batch', 'repeats', 'text_length'):
        if getattr(args, name) < 1:
            flag = name.replace('_', '-')
            raise UserError(f'--{flag} is {getattr(args, name)}; wanted 1 or more')
    from infinity_jax.tools.bench import report as bench_report
    from infinity_jax.tools.bench.generate import Workload, bench_generate
    from infinity_jax.tools.bench.tokenizer import bench_tokenizer
    from infinity_jax.tools.bench.train import bench_train

    benches = {'generate': bench_generate, 'tokenizer': bench_tokenizer, 'train': bench_train}
    workload = Workload(
        preset=args.preset,
        ratio=args.ratio,
        budget=args.budget,
        batch=args.batch,
        precision=args.precision,
        guidance=args.guidance,
        text_length=args.text_length,
        text_encoder=not args.no_text_encoder,
    )
    measured = benches[args.what](
        workload, repeats=args.repeats, warmup=args.warmup, profile=args.profile
    )
    report = bench_report.report_of(args.what, workload, measured)
    if args.json:
        bench_report.write_json(args.json, report)
    if args.plot:
        bench_report.write_plot(args.plot, report)
    print(bench_report.table(report))
