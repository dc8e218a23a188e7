"""Kills conversions while they save, starts them again, and compares the written files.

    PYTHONPATH=tests python -m kills.convert --count 40 --seed 0

By turns `infinity-jax convert from-torch` writes a model folder and `convert to-torch` exports the
shipped demo. A kill is a SIGKILL between the first temporary file and the end. A model folder that
was there before a kill must then be whole. The next start that ends must write the files of an
undisturbed conversion, byte for byte, and leave nothing else. The exit code is 1 if one differs.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from helpers.paths import REPOSITORY

from infinity_jax.runtime.atomic_write import previous_folder

DEMO = REPOSITORY / 'infinity_jax' / 'demo'
LIMIT = 600  # seconds after which a command counts as hung
KILLS_PER_RUN = 3


def start(place: pathlib.Path, conversion: str, torch: pathlib.Path) -> subprocess.Popen:
    """Starts a conversion that writes `place/out`.

    Args:
      place: a folder that holds nothing else.
      conversion: to-torch, or from-torch of the files in `torch`.
      torch: folder of an earlier export.
    """
    flags = {
        'to-torch': ['--checkpoint', str(DEMO)],
        'from-torch': [
            *('--transformer', str(torch / 'transformer.pth')),
            *('--tokenizer', str(torch / 'tokenizer.pth')),
            *('--text-encoder', str(DEMO / 'text_encoder')),
        ],
    }[conversion]
    return subprocess.Popen(
        [sys.executable, '-m', 'infinity_jax.cli', 'convert', conversion, *flags]
        + ['--out', str(place / 'out')],
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY), 'JAX_PLATFORMS': 'cpu'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def contents(place: pathlib.Path) -> dict[str, bytes]:
    """The bytes of all files below a folder, and the names of empty folders."""
    found = {}
    for path in sorted(place.rglob('*')):
        if path.is_file() or not any(path.iterdir()):
            found[path.relative_to(place).as_posix()] = path.read_bytes() if path.is_file() else b''
    return found


def temporary(place: pathlib.Path) -> set[pathlib.Path]:
    """The temporary folders of conversions in progress, and of those that were killed."""
    return {*place.glob('.*.partial'), *place.glob('out/.*.partial')}


def wait_for_save(running: subprocess.Popen, place: pathlib.Path) -> None:
    """Waits until the conversion saves, which begins with the removal of what kills have left."""
    left = temporary(place)
    while running.poll() is None and (left & temporary(place) or not temporary(place)):
        time.sleep(0.001)


def end(running: subprocess.Popen) -> None:
    """Waits for the regular end."""
    errors = running.communicate(timeout=LIMIT)[1]
    if running.returncode:
        raise RuntimeError(f'exit code {running.returncode}: {errors.decode()[-2000:]}')


def undisturbed(place: pathlib.Path, conversion: str, torch: pathlib.Path) -> float:
    """Converts; returns the seconds between the start of the save and the end."""
    running = start(place, conversion, torch)
    wait_for_save(running, place)
    begin = time.monotonic()
    end(running)
    return time.monotonic() - begin


def kill_once(running: subprocess.Popen, place: pathlib.Path, seconds: float) -> bool:
    """Kills a conversion so long after it began to save; returns whether it had not ended."""
    wait_for_save(running, place)
    stop = time.monotonic() + seconds
    while running.poll() is None and time.monotonic() < stop:
        time.sleep(0.001)
    killed = running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=LIMIT)
    return killed


def whole(place: pathlib.Path, wanted: dict[str, bytes]) -> bool:
    """Whether the model folder, or the old one next to it, has all of its files."""
    out = place / 'out'
    return contents(out if out.exists() else previous_folder(out)) == {
        name.removeprefix('out/'): content for name, content in wanted.items()
    }


def differences(found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    """What is left behind, missing or other."""
    names = sorted(found.keys() | wanted.keys())
    return [
        f'{name}: {"left behind" if name not in wanted else "missing or other content"}'
        for name in names
        if found.get(name) != wanted.get(name)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, kills `--count` times, prints a line per run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=20, help='kills (default: 20)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments (default: 0)')
    parser.add_argument('--minutes', type=float, default=1e9, help='start no run after so long')
    flags = parser.parse_args(arguments)
    rng = random.Random(flags.seed)
    stop = time.monotonic() + 60 * flags.minutes
    killed = runs = different = 0
    with tempfile.TemporaryDirectory() as folder:
        places = {name: pathlib.Path(folder, name) for name in ('to-torch', 'from-torch')}
        torch = places['to-torch'] / 'out'
        seconds, wanted = {}, {}
        while killed < flags.count and time.monotonic() < stop:
            conversion = list(places)[runs % 2]
            if conversion not in wanted:
                places[conversion].mkdir()
                seconds[conversion] = undisturbed(places[conversion], conversion, torch)
                wanted[conversion] = contents(places[conversion])
            place = pathlib.Path(folder, 'run')
            place.mkdir()
            replaces = rng.random() < 0.5  # what an earlier conversion wrote
            if replaces:
                shutil.copytree(places[conversion], place, dirs_exist_ok=True)
            problems = []
            for _ in range(min(KILLS_PER_RUN, flags.count - killed)):
                delay = rng.uniform(0, 1.1 * seconds[conversion])
                killed += kill_once(start(place, conversion, torch), place, delay)
                if replaces and conversion == 'from-torch' and not whole(place, wanted[conversion]):
                    problems.append('the model folder is not whole after a kill')
            left = len(temporary(place))
            end(start(place, conversion, torch))
            problems += differences(contents(place), wanted[conversion])
            runs, different = runs + 1, different + bool(problems)
            print(
                f'run {runs} of {conversion}, {killed} kills, {left} temporary folders before the '
                f'last start: {"; ".join(problems) or "equal"}',
                flush=True,
            )
            shutil.rmtree(place)
    print(f'{killed} kills in {runs} runs, {different} of them differ')
    return int(different > 0)


if __name__ == '__main__':
    sys.exit(main())
