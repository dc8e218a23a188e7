"""The parts of scripts/measure_gpu.sh, each a process of its own with a time limit.

A part that fails or takes too long is recorded, and the next one runs. Time that a part leaves is
the next one's. The files are written after every part, so that a kill loses one part at most.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
REFERENCES = ROOT / 'tests' / 'golden'
LIMIT = 570  # seconds of all parts together; the rest of ten minutes is for starting
LEAST = 5  # seconds; a part that would get fewer is left out
PROMPT = 'a sailboat on an orange background'
CLI = (sys.executable, '-m', 'infinity_jax.cli')


@dataclasses.dataclass(frozen=True)
class Part:
    """A measurement.

    Attributes:
      name: of the part, its JSON and its log.
      seconds: its limit.
      command: writes the JSON named by {out}.
    """

    name: str
    seconds: int
    command: tuple[str, ...]


def parts(small: bool, references: pathlib.Path) -> list[Part]:
    """All measurements in order; `small` ones run on a CPU."""
    own = (sys.executable, str(ROOT / 'scripts' / 'measure_gpu.py'))

    def bench(what: str, *flags: str) -> tuple[str, ...]:
        repeats = '1' if small else '5'
        return (*CLI, 'bench', what, *flags, '--no-bare', '--repeats', repeats, '--json', '{out}')

    def images(preset: str, batch: int) -> tuple[str, ...]:
        if small:
            preset, batch = 'demo', min(batch, 2)
        model = ('--preset', preset, '--batch', str(batch), '--budget', '1M')
        return bench('generate', *model, '--no-text-encoder')

    def train(budget: str, *flags: str) -> tuple[str, ...]:
        return bench('train', '--preset', 'demo' if small else '2b', '--budget', budget, *flags)

    count = '2' if small else '24'
    return [
        Part('cudnn', 30, (*own, '--part', 'cudnn', '--out', '{out}')),
        Part(
            'parity',
            60,
            (*own, '--part', 'parity', '--references', str(references), '--out', '{out}'),
        ),
        Part('demo', 50, (*own, '--part', 'demo', '--count', count, '--out', '{out}')),
        Part('generate_2b_1', 70, images('2b', 1)),
        Part('train_2b_512', 80, train('0.25M', '--batch', '4', '--remat', 'dots')),
        Part('generate_8b_1', 70, images('8b', 1)),
        Part('lora_2b_1024', 70, train('1M', '--batch', '2', '--lora', '16', '--remat', 'full')),
        Part('generate_2b_8', 70, images('2b', 8)),
        Part('generate_8b_8', 70, images('8b', 8)),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('measured'))
    parser.add_argument('--references', type=pathlib.Path, default=REFERENCES)
    parser.add_argument('--small', action='store_true', help='small sizes, for a CPU')
    parser.add_argument(
        '--slower', type=float, default=1, metavar='N', help='multiply all limits by N'
    )
    parser.add_argument('--dry-run', action='store_true', help='print the commands alone')
    parser.add_argument('--part', choices=OWN, help=argparse.SUPPRESS)
    parser.add_argument('--count', type=int, default=24, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        OWN[args.part](args)
        return
    found = parts(args.small, args.references)
    if args.dry_run:
        for part in found:
            print(f'{part.name} ({part.seconds} s): {" ".join(part.command)}')
        return
    args.out.mkdir(parents=True, exist_ok=True)
    started, report = time.monotonic(), {'machine': machine(), 'parts': {}}
    ends = 0.0
    for part in found:
        ends = min(ends + part.seconds * args.slower, LIMIT * args.slower)
        left = started + ends - time.monotonic()
        report['parts'][part.name] = run_part(part, left, args.out)
        report['seconds'] = time.monotonic() - started
        (args.out / 'measured.json').write_text(json.dumps(report, indent=2) + '\n')
        (args.out / 'measured.txt').write_text(table(report))
    print(table(report), end='')


def run_part(part: Part, seconds: float, out: pathlib.Path) -> dict[str, Any]:
    """Runs a part for at most so many seconds; its status, time and figures."""
    if seconds < LEAST:
        return {'status': 'no time left', 'seconds': 0.0}
    file, log = (out / f'{part.name}.{ending}' for ending in ('json', 'log'))
    file.unlink(missing_ok=True)
    command = [word.format(out=file) if word == '{out}' else word for word in part.command]
    started = time.monotonic()
    with open(log, 'w', encoding='utf-8') as lines:
        # A session of its own, so that the processes that it started end with it.
        process = subprocess.Popen(
            command, stdout=lines, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            status = 'ok' if code == 0 else f'failed with {code}'
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            status = f'stopped after {seconds:.0f} s'
    result: dict[str, Any] = {'status': status, 'seconds': time.monotonic() - started}
    if file.exists():
        result['figures'] = json.loads(file.read_text(encoding='utf-8'))
    if status != 'ok':
        result['last_lines'] = log.read_text(encoding='utf-8', errors='replace').splitlines()[-5:]
    print(f'{part.name}: {status} ({result["seconds"]:.0f} s)', file=sys.stderr)
    return result


def table(report: dict[str, Any]) -> str:
    """One row per part, as Markdown."""
    lines = [
        f'{report["machine"]}; {report["seconds"]:.0f} s in all',
        '',
        '| part | status | time | seconds of each stage | of peak | peak memory | other |',
        '|---|---|---|---|---|---|---|',
    ]
    for name, part in report['parts'].items():
        figures = part.get('figures', {})
        stages = figures.get('stages', {})
        seconds = ', '.join(f'{key} {stage["seconds"]:.3f}' for key, stage in stages.items())
        peak = ', '.join(f'{stage["fraction_of_peak"]:.1%}' for stage in stages.values())
        memory = f'{figures["peak_memory"] / 1e9:.2f} GB' if 'peak_memory' in figures else ''
        other = figures.get('line', '')
        if 'images_per_second' in figures:
            other = f'{figures["images_per_second"]:.3g} images/s'
        time_ = f'{part["seconds"]:.0f} s'
        lines.append(
            f'| {name} | {part["status"]} | {time_} | {seconds} | {peak} | {memory} | {other} |'
        )
    return '\n'.join(lines) + '\n'


def machine() -> str:
    """The card with its driver, or the processor's kind, in a process of its own.

    A process that has used the card keeps memory of it.
    """
    code = (
        'import jax, platform; d = jax.devices()[0]; '
        'kind = getattr(d, "compute_capability", platform.machine()); '
        'print(f"{d.device_kind}, {kind}, jax {jax.__version__}, '
        'python {platform.python_version()}")'
    )
    asked = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    lines = asked.stdout.splitlines() or ['unknown device']
    try:
        query = ('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split()
    except OSError:
        driver = []
    return lines[-1] + (f', driver {driver[0]}' if driver else '')


def measure_cudnn(args: argparse.Namespace) -> None:
    """cuDNN attention against XLA's, on queries and keys of the 2B's last scale."""
    import jax
    import jax.numpy as jnp

    from infinity_jax.sharding import target_platform
    from infinity_jax.tools.bench.stage import timed
    from infinity_jax.transformer.attention_ops import attend

    if target_platform() != 'gpu':
        write(args.out, {'line': 'no GPU here: not run'})
        return
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (2, length, 16, 128), jnp.bfloat16)
        for key, length in zip(keys, (4096, 10521, 10521), strict=True)
    )
    outputs, seconds = {}, {}
    for name in ('cudnn', 'xla'):
        run = jax.jit(
            lambda q, k, v, name=name: attend(q, k, v, scale=128**-0.5, implementation=name)
        )
        outputs[name] = run(q, k, v).astype(jnp.float32)
        seconds[name] = min(timed(lambda run=run: run(q, k, v))[0] for _ in range(5))
    error = float(jnp.abs(outputs['cudnn'] - outputs['xla']).max() / jnp.abs(outputs['xla']).max())
    line = f'error {error:.1e}, cuDNN {seconds["cudnn"]:.4f} s, XLA {seconds["xla"]:.4f} s'
    write(args.out, {'error': error, 'seconds': seconds, 'line': line})
    if not error < 0.02:  # two or three units in bfloat16's last place
        sys.exit('cuDNN attention differs from XLA')


def measure_parity(args: argparse.Namespace) -> None:
    """`infinity-jax check` of every folder of reference arrays."""
    folders = sorted(
        path.parent
        for path in args.references.glob('*/arrays.npz')
        if any((path.parent / name).exists() for name in ('meta.json', 'config.json'))
    )
    codes = {}
    for folder in folders:
        codes[folder.name] = subprocess.run([*CLI, 'check', str(folder)]).returncode
        shown = ', '.join(
            f'{name} {"ok" if code == 0 else "FAILED"}' for name, code in codes.items()
        )
        write(args.out, {'folders': codes, 'line': shown})
    if not codes or any(codes.values()):
        sys.exit(1)


def measure_demo(args: argparse.Namespace) -> None:
    """Images of the demo on this device and on the CPU, value by value."""
    import numpy as np
    from PIL import Image

    images = {}
    for name, environment in (('here', {}), ('cpu', {'JAX_PLATFORMS': 'cpu'})):
        folder = args.out.parent / f'demo_{name}'
        if folder.exists():  # images of an earlier run, perhaps of another number
            shutil.rmtree(folder)
        folder.mkdir()
        command = [*CLI, 'generate', PROMPT, '--num', str(args.count), '--out', f'{folder}/']
        subprocess.run(command, check=True, env={**os.environ, **environment})
        files = sorted(folder.glob('*.png'))
        images[name] = np.stack([np.asarray(Image.open(file), np.int16) for file in files])
    off = np.abs(images['here'] - images['cpu'])
    figures = {
        'images': args.count,
        'equal_images': int((off.max(axis=(1, 2, 3)) == 0).sum()),
        'within_one_level': float((off <= 1).mean()),
        'largest_difference': int(off.max()),
    }
    line = (
        f'{figures["equal_images"]} of {args.count} images have the bytes of the CPU; '
        f'{figures["within_one_level"]:.3%} of values within one grey level'
    )
    write(args.out, {**figures, 'line': line})


def write(path: pathlib.Path, figures: dict[str, Any]) -> None:
    """Writes the JSON of a part."""
    path.write_text(json.dumps(figures) + '\n', encoding='utf-8')


OWN: dict[str, Callable[[argparse.Namespace], None]] = {
    'cudnn': measure_cudnn,
    'parity': measure_parity,
    'demo': measure_demo,
}

if __name__ == '__main__':
    main()
