"""Damages checkpoints at random places and looks from which state a run would go on.

    PYTHONPATH=tests python -m kills.damage --count 100 --seed 0
    PYTHONPATH=tests python -m kills.damage --count 100 --run RUN_FOLDER

The newest checkpoint of a copy of the run folder gets a flipped bit, a zeroed block, 4 kB of NaN, a
file of zeros, a shorter one or a missing one. The state that is restored must be one that was
saved, bit for bit, or the run must be refused in one line. The exit code is 1 if a restored state
differs.
"""

import argparse
import collections
import pathlib
import random
import shutil
import sys
import tempfile
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from infinity_jax.errors import UserError
from infinity_jax.training.checkpoint import Checkpoints
from infinity_jax.training.checkpoint_hashes import FILE_NAME

KINDS = ('flipped bit', 'zeroed block', 'zeros alone', 'NaN', 'truncated file', 'missing file')
NAN = np.full(1024, np.nan, np.float32).tobytes()  # 4 kB


def make_run(run_dir: pathlib.Path) -> None:
    """A run folder with two checkpoints of random arrays."""
    checkpoints = Checkpoints(run_dir, keep=2)
    for step in (1, 2):
        numbers = np.random.default_rng(step)
        arrays = {str(i): numbers.standard_normal((5 * i + 1, 8)) for i in range(20)}
        state = {name: jax.numpy.asarray(array, 'float32') for name, array in arrays.items()}
        checkpoints.save(step, {**state, 'step': jax.numpy.int32(step)})
    checkpoints.wait()
    checkpoints.close()


def damage(folder: pathlib.Path, choose: random.Random) -> tuple[str, pathlib.Path]:
    """Damages one file of a checkpoint; returns the kind of damage and the file."""
    paths = sorted(path for path in folder.rglob('*') if path.is_file())
    # Half of the time by size, as a disk would; else every file is as likely.
    sizes = [path.stat().st_size for path in paths]
    path = choose.choices(paths, sizes)[0] if choose.random() < 0.5 else choose.choice(paths)
    content = bytearray(path.read_bytes())
    kind = choose.choice(KINDS)
    place = choose.randrange(max(len(content), 1))
    if kind == 'missing file':
        path.unlink()
        return kind, path
    if kind == 'flipped bit' and content:
        content[place] ^= 1 << choose.randrange(8)
    elif kind == 'zeros alone':
        content[:] = bytes(len(content))
    elif kind == 'NaN':
        content[place : place + 4096] = NAN[: len(content) - place]
    elif kind == 'zeroed block':
        start = place // 512 * 512
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    else:
        del content[place:]
    path.write_bytes(content)
    return kind, path


def restored(run_dir: pathlib.Path, abstract: Any) -> tuple[dict[str, bytes], list[str]]:
    """The bytes of each array of the state that a run goes on from, and the lines it prints."""
    said: list[str] = []
    checkpoints = Checkpoints(run_dir, keep=2)
    try:
        state = checkpoints.restore_newest(abstract, said.append)
        checkpoints.wait()
    finally:
        checkpoints.close()
    named = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in named}, said


def abstract_state(checkpoint: pathlib.Path) -> Any:
    """The shapes of a checkpoint's state, for one device."""
    saved = ocp.metadata(checkpoint, checkpointable_name='state').metadata
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved
    )


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, damages `--count` checkpoints, prints a summary; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=20, help='damaged checkpoints (default: 20)')
    parser.add_argument('--seed', type=int, default=0, help='of kinds and places (default: 0)')
    parser.add_argument('--run', type=pathlib.Path, help='run folder with two checkpoints or more')
    flags = parser.parse_args(arguments)
    choose, results = random.Random(flags.seed), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        original = flags.run or pathlib.Path(folder) / 'original'
        if not flags.run:
            make_run(original)
        steps = sorted(int(path.name) for path in (original / 'checkpoints').iterdir())
        newest = original / 'checkpoints' / str(steps[-1])
        abstract = abstract_state(newest)
        whole = restored(original, abstract)[0]
        copy = pathlib.Path(folder) / 'copy'
        shutil.copytree(original / 'checkpoints', copy / 'checkpoints')
        shutil.rmtree(copy / 'checkpoints' / newest.name)
        before = restored(copy, abstract)[0]
        for _ in range(flags.count):
            shutil.rmtree(copy)
            shutil.copytree(original / 'checkpoints', copy / 'checkpoints')
            kind, path = damage(copy / 'checkpoints' / newest.name, choose)
            try:
                state, said = restored(copy, abstract)
                known = {False: 'OTHER NUMBERS', True: 'fell back, with a line'}
                result = known[state == before and len(said) == 1]
                if state == whole:
                    # A lost hashes.json, or a change that JSON does not see.
                    result = 'read whole' if path.name == FILE_NAME else 'DAMAGE UNSEEN'
            except UserError as error:
                result = 'refused in one line' if '\n' not in str(error) else 'LONG MESSAGE'
            results[f'{kind}: {result}'] += 1
            if result.isupper():
                print(f'{result}: {kind} of {path.relative_to(copy)}')
    for result, count in sorted(results.items()):
        print(f'{count:4} {result}')
    return int(any(result.partition(': ')[2].isupper() for result in results))


if __name__ == '__main__':
    sys.exit(main())
