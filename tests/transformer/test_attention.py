import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import TRANSFORMER, lively

from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.attention import CrossAttention, SelfAttention
from infinity_jax.transformer.attention_ops import attend, prefix_attention, query_groups
from infinity_jax.transformer.rope import rope_table

pytestmark = pytest.mark.numeric

SCHEDULE = ScaleSchedule.free(((1, 1), (2, 2), (3, 3), (4, 4), (6, 5)))


@functools.cache
def qkv():
    shape = (3, 2, SCHEDULE.num_tokens, 2, 8)
    q, k, v = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return 3 * q, k, v


def fully_masked():
    """Plain attention with the whole L×L mask, in float64."""
    q, k, v = (x.astype(np.float64) for x in qkv())
    scores = np.einsum('blnh,bsnh->bnls', q, k)
    scale_of = SCHEDULE.scale_of_token
    scores = np.where(scale_of[:, None] >= scale_of[None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum('bnls,bsnh->blnh', weights, v)


@pytest.mark.parametrize('merge_tokens', [0, 14, 30, 10_000])
def test_slices_equal_merged_equal_fully_masked(merge_tokens):
    groups = query_groups(SCHEDULE, merge_tokens)
    ours = jax.jit(lambda *x: prefix_attention(*x, groups))(*qkv())
    np.testing.assert_allclose(ours, fully_masked(), atol=1e-6 * np.abs(fully_masked()).max())


def test_groups_partition_the_sequence():
    def spans(merge):
        return [(g.start, g.end, g.mask is None) for g in query_groups(SCHEDULE, merge)]

    assert spans(0) == [(s, e, True) for s, e in SCHEDULE.spans]
    assert spans(14) == [(0, 14, False), (14, 30, True), (30, 60, True)]
    assert spans(10_000) == [(0, 60, False)]
    released = query_groups(ScaleSchedule.for_image(1.0, '1M'))
    assert [g.mask is None for g in released] == [False] + [True] * (len(released) - 1)
    for group in released:
        if group.mask is not None:
            assert group.mask.size <= 128**2


def test_attend_ignores_the_values_of_padded_keys():
    q, k, v = qkv()
    lengths = jnp.array([7, 20])
    plain = attend(q, k, v, scale=0.5, key_lengths_B=lengths)
    padding = np.arange(k.shape[1])[None, :, None, None] >= np.array([7, 20])[:, None, None, None]
    noisy = attend(
        q, np.where(padding, 50.0, k), np.where(padding, -1e4, v), scale=0.5, key_lengths_B=lengths
    )
    np.testing.assert_array_equal(plain, noisy)
    for row, length in enumerate((7, 20)):
        part = (x[row : row + 1] for x in (q, k[:, :length], v[:, :length]))
        np.testing.assert_allclose(attend(*part, scale=0.5)[0], plain[row], atol=1e-5)


def module_variables(module, *args, method):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, method=method))
    return lively(nn.unbox(shapes))


def test_queries_and_keys_are_unit_vectors_scaled_by_head():
    module = SelfAttention(TRANSFORMER)
    rope = jnp.asarray(rope_table(SCHEDULE, TRANSFORMER.head_dim))
    x = np.random.default_rng(0).standard_normal((2, SCHEDULE.num_tokens, 32)).astype(np.float32)
    variables = {'params': module_variables(module, x, rope, method='project')['params']}
    variables['params']['log_scale'] = jnp.array([1.0, 9.0])  # the second is above log 100
    q, k, v = module.apply(variables, x, rope, method='project')
    np.testing.assert_allclose(np.linalg.norm(k, axis=-1), 1, rtol=1e-5)
    lengths = np.linalg.norm(q, axis=-1)
    np.testing.assert_allclose(lengths[..., 0], np.e, rtol=1e-5)
    np.testing.assert_allclose(lengths[..., 1], 100, rtol=1e-5)
    kernel = variables['params']['qkv']['kernel']
    raw = np.asarray(np.einsum('bld,de->ble', x, kernel))
    bias = np.asarray(variables['params']['value_bias'])
    np.testing.assert_allclose(v.reshape(x.shape), raw[..., 64:] + bias, atol=1e-5)
    first = raw[:, :1, 32:64].reshape(2, 1, 2, 16)  # keys have no bias; position 0 turns nothing
    first /= np.linalg.norm(first, axis=-1, keepdims=True)
    np.testing.assert_allclose(k[:, :1], first, atol=1e-5)


def test_cross_attention_ignores_padded_text():
    module = CrossAttention(TRANSFORMER)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 32)).astype(np.float32)
    memory = rng.standard_normal((2, 8, 32)).astype(np.float32)
    lengths = jnp.array([3, 8])

    def run(variables, memory, lengths):
        keys_values = module.apply(variables, memory, method='keys_values')
        return module.apply(variables, x, keys_values, lengths)

    keys = jnp.zeros((2, 8, 2, 16))
    of_text = module_variables(module, memory, method='keys_values')['params']
    of_tokens = module_variables(module, x, (keys, keys), lengths, method='__call__')['params']
    variables = {'params': of_tokens | of_text}
    plain = run(variables, memory, lengths)
    noisy = memory.copy()
    noisy[0, 3:] = 1e3
    np.testing.assert_array_equal(run(variables, noisy, lengths), plain)
    assert np.abs(run(variables, noisy, jnp.array([8, 8]))[0] - plain[0]).max() > 0.1
    short = run(variables, memory[:, :3], jnp.array([3, 3]))
    np.testing.assert_allclose(short[0], plain[0], atol=1e-5)
