"""One scale's attention to the cache equals attention to all its keys in one array."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import QUICK_COMPILE, TRANSFORMER

from infinity_jax.inference.cpu_layerwise import attend_heads_first
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.transformer import attention_ops
from infinity_jax.transformer import kv_cache as cache_module
from infinity_jax.transformer.attention_ops import (
    attend,
    attend_scale,
    prefix_attention,
    query_groups,
    training_length,
)
from infinity_jax.transformer.kv_cache import KeyValueCache

START, LENGTH = 20, 130  # as many queries as splash attention takes


def arrays(tokens):
    """A cache that is full of numbers, also where no token is yet, and one scale's q, k and v."""
    rng = np.random.default_rng(0)
    numbers = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    cache = KeyValueCache(*(numbers(2, 2, 3, tokens, 8) for _ in range(2)))
    return cache, [numbers(2, LENGTH, 3, 8) for _ in range(3)]


@pytest.mark.parametrize('implementation', ['xla', 'splash'])
@pytest.mark.parametrize('last, tokens', [(False, START + LENGTH), (False, 256), (True, START)])
def test_a_scale_sees_the_cache_and_itself(implementation, last, tokens):
    cache, (q, k, v) = arrays(tokens)
    run = functools.partial(attend_scale, start=START, last=last, implementation=implementation)
    attended, stored = jax.jit(run, compiler_options=QUICK_COMPILE)(q, k, v, cache, jnp.int32(1))

    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    seen = [
        jnp.concatenate([old[1, :, :, :START], new], axis=2)
        for old, new in zip(cache, (k, v), strict=True)
    ]
    wanted = attend_heads_first(q, *seen)
    np.testing.assert_allclose(attended, wanted, atol=1e-5 * np.abs(wanted).max())
    for old, new, now in zip(cache, (k, v), stored, strict=True):
        if not last:
            old = old.at[1, :, :, START : START + LENGTH].set(new)
        assert (now == old).all()


def test_cudnn_gets_even_numbers_of_tokens_split_alike(monkeypatch):
    """jax refuses gradients of its attention for odd ones, and q, k and v of other shardings."""
    schedule = ScaleSchedule.free(((1, 1), (12, 12), (13, 13)))
    groups, rng, seen = query_groups(schedule), np.random.default_rng(0), []
    q, k, v = (jnp.asarray(rng.standard_normal((2, 314, 2, 8)), jnp.float32) for _ in range(3))
    wanted = prefix_attention(q, k, v, groups, 'xla')
    attention = jax.nn.dot_product_attention

    def even(q, k, v, implementation=None, **options):
        seen.append((implementation, q.shape[1], k.shape[1]))
        return attention(q, k, v, implementation='xla', **options)

    def constrain(x, *axes):
        split.append(axes)
        return x

    split = []
    monkeypatch.setattr(attention_ops, 'constrain', constrain)
    monkeypatch.setattr(jax.nn, 'dot_product_attention', even)
    monkeypatch.setattr(
        attention_ops, 'choose', lambda name, q: 'cudnn' if q.shape[1] > 128 else 'xla'
    )
    assert training_length(145, TRANSFORMER, 'auto') == 152
    found = prefix_attention(q, k, v, groups)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert split == [('batch', None, 'heads', None)] * 8  # q, k, v and the result, twice
    assert seen == [('xla', 1, 1), ('cudnn', 144, 146), ('cudnn', 170, 314)]
    lengths_B = jnp.asarray([7, 3], jnp.int32)
    text = attend(q, k[:, :7], v[:, :7], scale=1.0, key_lengths_B=lengths_B)
    assert seen[-1] == ('cudnn', 314, 8) and text.shape == q.shape


def test_attention_with_heads_first_is_attention():
    _, (q, k, v) = arrays(START)
    lengths_B = jnp.asarray([LENGTH, 3])
    wanted = attend(q, k, v, scale=0.3, key_lengths_B=lengths_B, implementation='xla')
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    found = attend_heads_first(q, k, v, scale=0.3, key_lengths_B=lengths_B)
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max())


def test_on_a_mesh_no_device_gathers_the_cache(monkeypatch):
    monkeypatch.setattr(cache_module, 'target_platform', lambda: 'tpu')
    schedule = ScaleSchedule.for_image(1.0, '0.06M')

    def fill(k_BNLH):
        store = lambda cache, layer: (cache.store(layer, 0, k_BNLH, k_BNLH), None)
        cache = KeyValueCache.empty(TRANSFORMER, schedule, 8)
        return jax.lax.scan(store, cache, jnp.arange(TRANSFORMER.depth))[0]

    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))):
        k_BNLH = jnp.ones((8, TRANSFORMER.num_heads, 4, TRANSFORMER.head_dim))
        assert 'all-gather' not in jax.jit(fill).lower(k_BNLH).compile().as_text()
