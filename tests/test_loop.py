import types

import jax
import pytest

from infinity_jax.config import UserError
from infinity_jax.loop import check_batch, init_key, step_key
from infinity_jax.sharding import MeshConfig, make_mesh


def test_a_batch_splits_evenly_over_the_mesh():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    check_batch(types.SimpleNamespace(batch_size=16), mesh)
    with pytest.raises(UserError, match='batch_size 12 does not divide over data x fsdp = 8'):
        check_batch(types.SimpleNamespace(batch_size=12), mesh)


def test_every_host_has_its_own_share_of_a_batch(monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    check_batch(types.SimpleNamespace(batch_size=8), make_mesh(MeshConfig(data=2, tensor=4)))
    with pytest.raises(UserError, match='1 shares of a batch for 2 hosts'):
        check_batch(types.SimpleNamespace(batch_size=8), make_mesh(MeshConfig(data=1, tensor=8)))


def test_no_step_shares_its_key_with_the_start_or_another_step():
    keys = [init_key(3), *(step_key(3, step) for step in range(4)), step_key(4, 0)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)
