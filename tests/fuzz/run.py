"""Feeds malformed inputs to the package and counts what happens.

    python tests/fuzz/run.py --count 400 --seed 0
    python tests/fuzz/run.py --kind config --count 100 --keep /tmp/bugs
    python tests/fuzz/run.py --kind config --only 17

Kinds: configs, model folders, JSON lines, tar shards, other layouts of images with captions, torch
files, prompt files. Each input has to be refused in one line or be read rightly; a traceback, a
hang, an error of several lines and a change without a word are bugs. The exit code is 1 if there is
any.
"""

import argparse
import faulthandler
import pathlib
import sys
import tempfile
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[n]) for n in (1, 2)]

import jax  # noqa: E402
import transformers  # noqa: E402, F401  (its import takes seconds, so that it would seem a hang)

jax.config.update('jax_platforms', 'cpu')

from fuzz.harness import BUGS, PATIENCE, TIME_LIMIT, Outcome, run_cases, table  # noqa: E402
from fuzz.kinds import FUZZERS  # noqa: E402

STUCK = 2 * PATIENCE * TIME_LIMIT  # seconds, for code that no exception of Python reaches


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--kind', choices=[*FUZZERS, 'all'], default='all')
    parser.add_argument('--count', type=int, default=50, help='cases of each kind')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', type=int, metavar='N', help='repeat a single case')
    parser.add_argument('--keep', type=pathlib.Path, metavar='DIR', help='gets the inputs of bugs')
    parser.add_argument('--verbose', action='store_true', help='print every case')
    args = parser.parse_args()
    sys.stdout.reconfigure(errors='backslashreplace')  # some inputs are half characters
    numbers = range(args.count) if args.only is None else [args.only]
    outcomes: dict[str, list[Outcome]] = {}
    for kind in FUZZERS if args.kind == 'all' else [args.kind]:
        start, outcomes[kind] = time.monotonic(), []
        with tempfile.TemporaryDirectory() as folder:
            base = pathlib.Path(folder, 'base')
            base.mkdir()
            fuzzer = FUZZERS[kind](base)
            cases = run_cases(kind, fuzzer, numbers, args.seed, pathlib.Path(folder), args.keep)
            faulthandler.dump_traceback_later(STUCK, exit=True)
            for outcome in cases:
                faulthandler.dump_traceback_later(STUCK, exit=True)
                outcomes[kind].append(outcome)
                if outcome.verdict in BUGS or args.verbose or args.only is not None:
                    print(f'{kind} {outcome.number} {outcome.verdict}: {outcome.name[:200]}: '
                          f'{outcome.text[:600]}', flush=True)  # fmt: skip
            faulthandler.cancel_dump_traceback_later()
        seconds = time.monotonic() - start
        print(f'{kind}: {seconds / max(len(outcomes[kind]), 1):.2f} s per case', file=sys.stderr)
    print(table(outcomes))
    return int(any(o.verdict in BUGS for found in outcomes.values() for o in found))


if __name__ == '__main__':
    sys.exit(main())
