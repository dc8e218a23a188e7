"""The cache has one order of axes in memory, so that no program copies it whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.config import TransformerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer import kv_cache
from infinity_jax.transformer.kv_cache import KeyValueCache

CONFIG = TransformerConfig(depth=2, width=16, num_heads=2)
SCHEDULE = ScaleSchedule.free(((1, 1), (2, 2), (3, 3)))


@pytest.mark.parametrize('int8', [False, True], ids=['full', 'int8'])
@pytest.mark.parametrize(
    ('platform', 'layout'),
    [('gpu', '{4,2,3,1,0}'), ('tpu', '{4,3,2,1,0}')],
    ids=['tokens first on a GPU', 'heads first on a TPU'],
)
def test_an_update_keeps_the_order_of_the_axes(monkeypatch, platform, layout, int8):
    cache = KeyValueCache.empty(CONFIG, SCHEDULE, batch=2, int8=int8)
    new = jax.random.normal(jax.random.key(0), (2, 2, 4, 8)).astype(CONFIG.dtype)

    def store(cache, new):
        return cache.store(jnp.int32(1), 1, new, new)

    wanted = jax.jit(store)(cache, new)
    monkeypatch.setattr(kv_cache, 'target_platform', lambda: platform)
    compiled = jax.jit(lambda *args: store(*args)).lower(cache, new).compile()
    kind = 's8' if int8 else 'bf16'
    assert f'{kind}[2,2,2,5,8]{layout} ' in compiled.as_text()
    for ours, other in zip(*map(jax.tree.leaves, (compiled(cache, new), wanted)), strict=True):
        np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize(('platform', 'constrained'), [('gpu', 2), ('cpu', 0)])
def test_on_a_gpu_the_last_scale_reads_in_that_order_too(platform, constrained, monkeypatch):
    """It stores nothing, and of a single row the compiler would transpose the whole cache."""
    monkeypatch.setattr(kv_cache, 'target_platform', lambda: platform)
    cache = KeyValueCache.empty(CONFIG, SCHEDULE, batch=1)
    read = jax.make_jaxpr(lambda cache: cache.prefix(0, 3, 1, 'float32'))(cache)
    names = [equation.primitive.name for equation in read.eqns]
    assert names.count('layout_constraint') == constrained
