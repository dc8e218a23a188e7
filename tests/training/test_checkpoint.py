"""Save, restore, the order of starts, and failures that leave the last good checkpoint alone."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from infinity_jax.errors import UserError
from infinity_jax.sharding import make_mesh
from infinity_jax.training.checkpoint import Checkpoints
from infinity_jax.training.checkpoint_weights import load_weights
from infinity_jax.training.init_from import check_shapes, starting_state
from infinity_jax.training.loop import with_shardings


def state(value=1.0, width=8):
    return {'w': jnp.full((width, 2), value), 'step': jnp.int32(3)}


def abstract(tree, spec=PartitionSpec()):
    mesh = make_mesh()
    place = lambda x: NamedSharding(mesh, spec if x.ndim else PartitionSpec())
    return with_shardings(jax.eval_shape(lambda: tree), jax.tree.map(place, tree))


@pytest.fixture
def saved(tmp_path):
    """A run folder with two saves."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, state(float(step)))
    checkpoints.wait()
    checkpoints.close()
    return tmp_path


def test_restores_the_newest_onto_another_mesh(saved):
    checkpoints = Checkpoints(saved, keep=2)
    assert checkpoints.latest_step == 2
    restored = checkpoints.restore(2, abstract(state(), PartitionSpec('data')))
    np.testing.assert_array_equal(restored['w'], 2.0)
    assert restored['w'].sharding.spec == PartitionSpec('data')
    checkpoints.close()


def test_one_set_of_weights_is_read_from_whatever_mesh_saved_it(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    split = NamedSharding(make_mesh(), PartitionSpec('data'))
    for step in (3, 10):
        params = {'w': jax.device_put(jnp.full((16, 2), float(step)), split)}
        average = jax.tree.map(lambda x: x / 2, params)
        checkpoints.save(step, {'params': params, 'ema': average, 'step': jnp.int32(step)})
    checkpoints.wait()
    for step, which, value in ((None, 'params', 10), (3, 'params', 3), (10, 'ema', 5)):
        weights = load_weights(tmp_path, step, which)
        np.testing.assert_array_equal(weights['w'], np.full((16, 2), value))
        assert len(weights['w'].sharding.device_set) == 1
    with pytest.raises(UserError, match='no checkpoint of step 4; there: 3, 10'):
        load_weights(tmp_path, 4, 'params')
    with pytest.raises(UserError, match='holds .*; wanted average'):
        load_weights(tmp_path, 3, 'average')
    with pytest.raises(UserError, match='no checkpoint; there: none'):
        load_weights(tmp_path / 'elsewhere', None, 'ema')
    checkpoints.save(11, {'params': params, 'ema': average, 'step': jnp.int32(11)})
    checkpoints.wait()  # the run went on undisturbed
    checkpoints.close()


def test_keeps_the_newest(saved):
    checkpoints = Checkpoints(saved, keep=2)
    checkpoints.save(5, state())
    checkpoints.wait()
    checkpoints.close()
    assert sorted(path.name for path in (saved / 'checkpoints').iterdir()) == ['2', '5']


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    double = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s), donate_argnums=0)
    current = state(1.0, width=100_000)
    checkpoints.save(1, current)
    for _ in range(5):
        current = double(current)
    checkpoints.wait()
    restored = checkpoints.restore(1, abstract(state(1.0, 100_000)))
    np.testing.assert_array_equal(restored['w'], 1.0)
    checkpoints.close()


@pytest.mark.parametrize('other', [state(width=4), {**state(), 'new': jnp.zeros(3)}])
def test_another_shape_is_named_in_one_line(saved, other):
    checkpoints = Checkpoints(saved, keep=2)
    with pytest.raises(UserError, match=r'(w is \(8, 2\)|new is absent).*config wants') as caught:
        checkpoints.restore(2, abstract(other))
    assert '\n' not in str(caught.value)
    checkpoints.close()


def test_a_failed_save_says_so_and_leaves_the_last_good_one(saved, monkeypatch):
    checkpoints = Checkpoints(saved, keep=2)

    class Full:
        def result(self):
            raise ValueError('RESOURCE_EXHAUSTED: writing 8 bytes: No space left on device [28]')

    class FullDisk:
        def save_checkpointables_async(self, *_, **__):
            return Full()

        def close(self):
            Full().result()

    working = checkpoints._checkpointer  # made by the first use
    monkeypatch.setattr(checkpoints, '_checkpointer', FullDisk())
    checkpoints.save(3, state())
    with pytest.raises(UserError, match='No space left on device.*step 2, unharmed') as caught:
        checkpoints.wait()
    assert '\n' not in str(caught.value)
    checkpoints.close()  # does not report it again
    monkeypatch.setattr(checkpoints, '_checkpointer', working)
    restored = checkpoints.restore(2, abstract(state()))
    np.testing.assert_array_equal(restored['w'], 2.0)
    checkpoints.close()


@pytest.mark.parametrize('how_far', ['folder made', 'half written', 'not renamed'])
def test_an_interrupted_save_is_ignored_and_written_again(saved, how_far):
    partial = saved / 'checkpoints' / '3.orbax-checkpoint-tmp'
    if how_far == 'folder made':
        partial.mkdir()
    else:
        shutil.copytree(saved / 'checkpoints' / '2', partial)
    if how_far == 'half written':
        for path in [*partial.rglob('commit_success.txt'), *partial.rglob('d/*')]:
            path.unlink()
    checkpoints = Checkpoints(saved, keep=2)
    assert checkpoints.latest_step == 2
    checkpoints.save(3, state(3.0))
    checkpoints.wait()
    np.testing.assert_array_equal(checkpoints.restore(3, abstract(state()))['w'], 3.0)
    checkpoints.close()


def test_order_resume_then_init_from_then_scratch(saved, tmp_path_factory):
    choices = {'from_scratch': lambda: 'scratch', 'from_model': lambda: 'model'}
    quiet = {'say': lambda _: None}
    empty = Checkpoints(tmp_path_factory.mktemp('run'), keep=1)
    assert starting_state(empty, None, **choices, **quiet) == 'model'
    choices['from_model'] = None
    assert starting_state(empty, None, **choices, **quiet) == 'scratch'
    full = Checkpoints(saved, keep=2)
    said = []
    reporting = {'init_from': 'there', 'say': said.append}
    resumed = starting_state(full, abstract(state()), **choices, **reporting)
    assert len(said) == 1 and said[0].endswith('checkpoints/2, so not from config.init_from there')
    np.testing.assert_array_equal(resumed['w'], 2.0)
    empty.close()
    full.close()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'run').write_text('a file, not a folder')
    with pytest.raises(UserError, match='checkpoint folder.*config.run_dir'):
        Checkpoints(tmp_path / 'run', keep=1)


def test_weights_of_another_shape_are_no_start():
    wanted = {'a': jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    check_shapes('there', wanted, {'a': np.zeros((2, 3))})
    with pytest.raises(UserError, match=r'config.init_from there: a is \(2, 4\)'):
        check_shapes('there', wanted, {'a': np.zeros((2, 4))})
    with pytest.raises(UserError, match='a is absent'):
        check_shapes('there', wanted, None)


def test_a_checkpoint_that_holds_a_position_in_the_data_too_is_resumed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    older = {'state': state(5.0), 'data': {'next_index': 7}}
    checkpoints._checkpointer.save_checkpointables(4, older)
    restored = checkpoints.restore(4, abstract(state()))
    checkpoints.close()
    np.testing.assert_array_equal(restored['w'], 5.0)


def test_recent_losses_are_stored_with_the_state(saved):
    checkpoints = Checkpoints(saved, keep=3)
    losses = [float(np.float32(0.1)), 1e30]
    checkpoints.save(7, state(), losses)
    checkpoints.wait()
    assert checkpoints.recent_losses(7) == losses
    assert checkpoints.recent_losses(2) == []
    assert checkpoints.recent_losses(0) == []  # a run that starts
    # An older version stored none.
    checkpoints._checkpointer.save_checkpointables(8, {'state': state()})
    checkpoints.close()
    checkpoints = Checkpoints(saved, keep=3)
    assert checkpoints.recent_losses(8) == []
    checkpoints.close()
