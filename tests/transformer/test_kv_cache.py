"""The order of the cache's axes in memory."""

import jax
import pytest
from helpers.tiny import SCHEDULE, TRANSFORMER

from infinity_jax.transformer import kv_cache
from infinity_jax.transformer.kv_cache import KeyValueCache


@pytest.mark.parametrize(('platform', 'constrained'), [('gpu', 2), ('cpu', 0)])
def test_on_a_gpu_the_last_scale_reads_in_the_order_of_the_others(
    platform, constrained, monkeypatch
):
    """Else the compiler transposes the whole cache of a single row before the last scale."""
    monkeypatch.setattr(kv_cache, 'target_platform', lambda: platform)
    cache = KeyValueCache.empty(TRANSFORMER, SCHEDULE, batch=1)
    read = jax.make_jaxpr(lambda cache: cache.prefix(0, 3, 1, 'float32'))(cache)
    names = [equation.primitive.name for equation in read.eqns]
    assert names.count('layout_constraint') == constrained
