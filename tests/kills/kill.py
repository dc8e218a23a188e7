"""Kills the training command at random moments, resumes it, and compares with an undisturbed run.

    PYTHONPATH=tests python -m kills.kill --count 200 --seed 0
    PYTHONPATH=tests python -m kills.kill --count 10 --processes 2
    PYTHONPATH=tests python -m kills.kill --count 10 --store s3://bucket/kills

A kill is a SIGKILL while the command starts, trains, saves, evaluates, samples or exports. After a
few of them the run goes on to its end. Then every line of metrics.jsonl must be that of the
undisturbed run but for its times, samples and model must have the same bytes, and no other file
may be there. The exit code is 1 if a run differs. With --store, the killed runs have their folder
in an object store, and every start finds an empty cache, as on a new machine.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from helpers.paths import REPOSITORY
from helpers.tiny_run import COMPILE_CACHE, command

from infinity_jax.runtime.remote import file_system, is_remote
from infinity_jax.runtime.remote_copy import cache_folder, local_copy

FIELDS = {
    'grids': '((1,1),(4,4))',
    'steps': 12,
    'batch_size': 4,
    'eval_every': 4,
    'sample_every': 6,
    'checkpoint_every': 2,
}
TIMES = ('step_seconds', 'pictures_per_second', 'data_wait_seconds', 'model_tflops_per_second')
CACHES = tempfile.TemporaryDirectory(prefix='kills_')  # of starts with a store
LIMIT = 600  # seconds after which a command counts as hung
# The tests compile much and compute little: see tests/conftest.py.
XLA_FLAGS = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'


class Command:
    """The training command on one run folder, as one or several processes."""

    def __init__(self, run_dir: pathlib.Path | str, processes: int):
        working = pathlib.Path(run_dir)
        if is_remote(run_dir):
            os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(dir=CACHES.name)
            working = cache_folder('runs', str(run_dir))
            working.parent.mkdir(parents=True)
            # Named as the machine of the killed start, which waits for no lock.
            working.with_name(f'{working.name}.owner').write_text('kills', encoding='utf-8')
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            address = f'127.0.0.1:{probe.getsockname()[1]}'
        common = {
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(REPOSITORY), os.environ.get('PYTHONPATH', '')]),
            'JAX_PLATFORMS': 'cpu',
            'JAX_NUM_CPU_DEVICES': '1',
            'XLA_FLAGS': XLA_FLAGS,
            'JAX_COMPILATION_CACHE_DIR': COMPILE_CACHE,
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        }
        self.metrics = working / 'metrics.jsonl'
        self.before = self._metrics()  # of the killed start
        self.errors = tempfile.TemporaryFile()
        self.processes = []
        for i in range(processes):
            several = {
                'JAX_COORDINATOR_ADDRESS': address,
                'JAX_NUM_PROCESSES': str(processes),
                'JAX_PROCESS_ID': str(i),
            }
            self.processes.append(
                subprocess.Popen(
                    command(run_dir=run_dir, **FIELDS),
                    cwd=REPOSITORY,
                    env={**common, **(several if processes > 1 else {})},
                    stdout=self.errors,
                    stderr=self.errors,
                )
            )

    def running(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def _metrics(self) -> tuple[int, int]:
        """Inode and bytes of metrics.jsonl."""
        with contextlib.suppress(FileNotFoundError):
            found = self.metrics.stat()
            return found.st_ino, found.st_size
        return 0, 0

    def written(self) -> int:
        """Bytes of metrics.jsonl, which every start of the command replaces at first."""
        inode, size = self._metrics()
        return 0 if inode == self.before[0] else size

    def wait_for(self, size: int) -> None:
        """Waits until metrics.jsonl has that size, or the command has ended."""
        start = time.monotonic()
        while self.running() and self.written() < size:
            if time.monotonic() - start > LIMIT:
                raise TimeoutError(self.output())
            time.sleep(0.003)

    def kill(self, victim: int) -> None:
        """Kills one process; the others must end by themselves with code 75."""
        self.processes[victim].send_signal(signal.SIGKILL)
        for process in self.processes:
            code = process.wait(timeout=LIMIT)
            if code not in (-signal.SIGKILL, 75, 0):
                raise RuntimeError(f'exit code {code}: {self.output()}')

    def end(self) -> None:
        """Waits for the regular end."""
        for process in self.processes:
            if process.wait(timeout=LIMIT) != 0:
                raise RuntimeError(f'exit code {process.returncode}: {self.output()}')

    def output(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors='replace')[-2000:]


def undisturbed(run_dir: pathlib.Path, processes: int) -> tuple[float, float]:
    """Runs the command to its end; returns the seconds before its first and after its last line."""
    start = time.monotonic()
    running = Command(run_dir, processes)
    running.wait_for(1)
    first = time.monotonic() - start
    size, last = 0, time.monotonic()
    while running.running():
        if running.written() != size:
            size, last = running.written(), time.monotonic()
        time.sleep(0.003)
    running.end()
    return first, time.monotonic() - last


def kill_once(run_dir, size, seconds, processes, choose: random.Random) -> bool:
    """Starts the command and kills it at a random moment.

    Args:
      run_dir: of the run.
      size: of metrics.jsonl of the undisturbed run.
      seconds: before the first and after the last line of the undisturbed run.
      processes: number of processes.
      choose: source of the moment.

    Returns:
      whether it was killed, and had not ended before.
    """
    running = Command(run_dir, processes)
    phase = choose.choices(('start', 'middle', 'end'), (1, 6, 3))[0]
    delay = choose.uniform(0, {'start': seconds[0], 'middle': 0.3, 'end': seconds[1]}[phase])
    if phase == 'middle':
        running.wait_for(1)
        running.wait_for(choose.randint(min(running.written(), size), size))
    elif phase == 'end':
        running.wait_for(int(0.98 * size))
    stop = time.monotonic() + delay
    while running.running() and time.monotonic() < stop:
        time.sleep(0.002)
    killed = running.running()
    running.kill(choose.randrange(processes)) if killed else running.end()
    return killed


def lines(run_dir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl without times."""
    records = map(json.loads, (run_dir / 'metrics.jsonl').read_text().splitlines())
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def files(run_dir: pathlib.Path) -> dict[str, bytes]:
    """Names of all files, without those in checkpoints, and the content of images and model."""
    found = {}
    for path in sorted(run_dir.rglob('*')):
        name = path.relative_to(run_dir)
        inside = len(name.parts) > 2 and name.parts[0] == 'checkpoints'
        if name.parts[0] == 'tensorboard' or (inside and not name.name.startswith('.')):
            continue
        compared = path.is_file() and name.parts[0] in ('samples', 'model')
        content = path.read_bytes() if compared else b''
        if name.name == 'config.json' and compared:
            content = content.replace(str(run_dir).encode(), b'')
        found[str(name)] = content
    return found


def differences(run_dir: pathlib.Path, wanted: pathlib.Path) -> list[str]:
    """How a finished run differs from the undisturbed one."""
    problems = []
    ours, theirs = lines(run_dir), lines(wanted)
    for i in range(max(len(ours), len(theirs))):
        if ours[i : i + 1] != theirs[i : i + 1]:
            problems.append(f'line {i + 1}: {ours[i : i + 1]} for {theirs[i : i + 1]}')
            break
    found, known = files(run_dir), files(wanted)
    for name in sorted(found.keys() | known.keys()):
        if found.get(name) != known.get(name):
            what = 'left behind' if name not in known else 'missing' if name not in found else ''
            problems.append(f'{name}: {what or "other content"}')
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, kills `--count` times, prints a line per run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=20, help='kills (default: 20)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments (default: 0)')
    parser.add_argument('--processes', type=int, default=1, help='of the command (default: 1)')
    parser.add_argument('--store', default='', help='folder of a store for the killed runs')
    parser.add_argument('--kills-per-run', type=int, default=6, help='(default: 6)')
    parser.add_argument('--minutes', type=float, default=1e9, help='start no run after so long')
    flags = parser.parse_args(arguments)
    choose = random.Random(flags.seed)
    killed = runs = different = 0
    end = time.monotonic() + 60 * flags.minutes
    with tempfile.TemporaryDirectory() as folder:
        wanted = pathlib.Path(folder) / 'undisturbed'
        seconds = undisturbed(wanted, flags.processes)
        size = (wanted / 'metrics.jsonl').stat().st_size
        while killed < flags.count and time.monotonic() < end:
            run_dir = f'{flags.store}/run' if flags.store else pathlib.Path(folder) / 'run'
            goal = min(flags.count, killed + flags.kills_per_run)
            while killed < goal and time.monotonic() < end:
                killed += kill_once(run_dir, size, seconds, flags.processes, choose)
            Command(run_dir, flags.processes).end()
            problems = differences(local_copy(run_dir), wanted)
            runs, different = runs + 1, different + bool(problems)
            print(f'run {runs}, {killed} kills: {"; ".join(problems) or "equal"}', flush=True)
            if flags.store:
                file_system(run_dir).rm(run_dir, recursive=True)
            else:
                shutil.rmtree(run_dir)
    print(f'{killed} kills in {runs} runs, {different} of them differ')
    return int(different > 0)


if __name__ == '__main__':
    sys.exit(main())
