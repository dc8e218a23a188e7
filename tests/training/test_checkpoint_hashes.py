"""Damaged checkpoints: found by their hashes, moved away, and the run goes on from a whole one."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from infinity_jax.errors import UserError
from infinity_jax.sharding import make_mesh
from infinity_jax.training.checkpoint import DAMAGED, Checkpoints
from infinity_jax.training.checkpoint_hashes import FILE_NAME, Damaged, check_hashes
from infinity_jax.training.checkpoint_weights import load_weights
from infinity_jax.training.loop import with_shardings
from infinity_jax.weights import integrity

WIDTH = 3000


def state(value):
    weights = {'w': jnp.full((WIDTH, 2), float(value))}
    return {'params': weights, 'ema': weights, 'step': jnp.int32(value)}


def abstract():
    place = lambda x: NamedSharding(
        make_mesh(), PartitionSpec('data') if x.ndim else PartitionSpec()
    )
    shapes = jax.eval_shape(lambda: state(1))
    return with_shardings(shapes, jax.tree.map(place, shapes))


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """A run folder with the checkpoints of steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp('original')
    checkpoints = Checkpoints(folder, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture
def run_dir(original, tmp_path):
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


def files(run_dir, step):
    """The files of a checkpoint by their names."""
    folder = run_dir / 'checkpoints' / str(step)
    found = sorted(p for p in folder.rglob('*') if p.is_file())
    return {str(path.relative_to(folder)): path for path in found}


def array_file(run_dir, step):
    """The name of a file with the numbers of arrays."""
    folder = run_dir / 'checkpoints' / str(step)
    (path,) = folder.glob('state/ocdbt.process_0/d/*')
    return str(path.relative_to(folder))


def resume(run_dir):
    """The step that a run goes on from, and the lines that it prints."""
    checkpoints, lines = Checkpoints(run_dir, keep=3), []
    try:
        restored = checkpoints.restore_newest(abstract(), lines.append)
        checkpoints.wait()
        assert all('\n' not in line for line in lines)
        step = int(restored['step'])
        np.testing.assert_array_equal(restored['params']['w'], float(step))
        assert checkpoints.latest_step == step
        checkpoints.save(9, state(9))  # Orbax takes further saves
        checkpoints.wait()
    finally:
        checkpoints.close()
    return step, lines


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def zero(path):
    data = bytearray(path.read_bytes())
    data[: min(512, len(data) // 2)] = bytes(min(512, len(data) // 2))
    path.write_bytes(data)


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def nan(path):
    """4 kB of NaN, or fewer in a smaller file."""
    data = bytearray(path.read_bytes())
    size = min(4096, len(data) // 8 * 4)
    data[:size] = np.full(size // 4, np.nan, np.float32).tobytes()
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def remove(path):
    path.unlink()


@pytest.mark.parametrize('damage', [flip, zero, zeros, nan, truncate, remove])
def test_the_run_goes_on_from_the_newest_whole_checkpoint(run_dir, damage):
    name = array_file(run_dir, 3)
    damage(files(run_dir, 3)[name])
    damage(files(run_dir, 2)['_CHECKPOINT_METADATA'])
    step, lines = resume(run_dir)
    assert step == 1
    wrong = 'is missing' if damage is remove else 'differs from its hash'
    assert f'checkpoints/3 is damaged: {name} {wrong}; moved to {run_dir}/{DAMAGED}/3' in lines[0]
    assert f'2 is damaged: _CHECKPOINT_METADATA {wrong}; moved to {run_dir}' in lines[1]
    assert len(lines) == 2
    assert sorted(p.name for p in (run_dir / DAMAGED).iterdir()) == ['2', '3']  # kept


def test_every_file_is_covered(run_dir):
    assert resume(run_dir) == (3, [])
    for name in files(run_dir, 1):
        shutil.copytree(run_dir / 'checkpoints' / '1', run_dir / 'copy')
        flip(run_dir / 'copy' / name)
        with pytest.raises(Damaged, match='differs|not readable|missing|cannot be read'):
            check_hashes(run_dir / 'copy')
        shutil.rmtree(run_dir / 'copy')


@pytest.mark.parametrize('text', ['', '[]', 'null', '{', '{}', '[' * 100_000, '{"\\u0000": ""}'])
def test_damaged_hashes_are_damage(run_dir, text):
    files(run_dir, 3)[FILE_NAME].write_text(text)
    step, lines = resume(run_dir)
    assert step == 2 and len(lines) == 1 and 'checkpoints/3 is damaged: ' in lines[0]


def test_without_a_whole_checkpoint_nothing_is_moved_and_nothing_starts(run_dir):
    for step in (1, 2, 3):
        remove(files(run_dir, step)['state/_METADATA'])
    checkpoints = Checkpoints(run_dir, keep=3)
    with pytest.raises(UserError, match='no checkpoint is whole: .*3 is damaged.*1 is damaged'):
        checkpoints.restore_newest(abstract())
    checkpoints.close()
    assert not (run_dir / DAMAGED).exists()
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ['1', '2', '3']


def test_a_checkpoint_without_hashes_is_read_and_gets_them(run_dir):
    remove(files(run_dir, 3)[FILE_NAME])
    partial = run_dir / 'checkpoints' / '3' / f'.{FILE_NAME}.saving-999999999'  # of a killed run
    partial.touch()
    step, lines = resume(run_dir)
    assert step == 3 and len(lines) == 1 and '3 has no hashes' in lines[0]
    assert not partial.exists()
    assert resume(run_dir) == (9, [])
    assert check_hashes(run_dir / 'checkpoints' / '3')


@pytest.mark.parametrize('text', [None, '', 'null', '[]', '{}', '[' * 100_000, '\udcff'])
def test_a_damaged_description_without_hashes_is_found_by_reading_it(run_dir, text):
    remove(files(run_dir, 3)[FILE_NAME])
    path = files(run_dir, 3)['state/_METADATA']
    remove(path) if text is None else path.write_bytes(text.encode(errors='surrogateescape'))
    step, lines = resume(run_dir)
    assert step == 2 and len(lines) == 1 and '3 cannot be read: ' in lines[0]


def test_an_older_checkpoint_is_moved_if_orbax_stumbles_over_it(run_dir):
    files(run_dir, 2)['_CHECKPOINT_METADATA'].write_text('[]')
    step, lines = resume(run_dir)
    assert step == 3 and len(lines) == 1 and '2 is damaged: _CHECKPOINT_METADATA' in lines[0]


def test_a_second_damaged_checkpoint_of_a_step_is_kept_too(run_dir):
    (run_dir / DAMAGED / '3').mkdir(parents=True)
    remove(files(run_dir, 3)['state/_METADATA'])
    assert f'moved to {run_dir}/{DAMAGED}/3.2' in resume(run_dir)[1][0]


def test_other_commands_name_the_damaged_checkpoint(run_dir):
    flip(files(run_dir, 3)[array_file(run_dir, 3)])
    with pytest.raises(UserError, match='3 is damaged: .*; name .*STEP of another one.*1, 2'):
        load_weights(run_dir, None, 'ema')
    np.testing.assert_array_equal(load_weights(run_dir, 2, 'ema')['w'], 2.0)


def test_the_hashes_are_those_of_the_contents(run_dir):
    path = run_dir / 'large'
    content = np.random.default_rng(0).integers(0, 256, 5 * integrity._READ + 7, np.uint8)
    content.tofile(path)
    assert integrity.hash_file(path) == integrity.scan(content, content.dtype).hash
    stored = json.loads(files(run_dir, 3)[FILE_NAME].read_text())
    assert stored.keys() == files(run_dir, 3).keys() - {FILE_NAME}
    path.write_bytes(b'')
    assert integrity.hash_file(path) == integrity.scan(content[:0], content.dtype).hash
