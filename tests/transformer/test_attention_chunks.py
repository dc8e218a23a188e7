"""Attention in chunks of queries equals attention at once, and its gradient does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import QUICK_COMPILE

from infinity_jax.transformer import attention_ops
from infinity_jax.transformer.attention_ops import attend, chunk_length

pytestmark = pytest.mark.numeric


def arrays(queries=10, keys=7):
    rng = np.random.default_rng(0)
    shapes = [(2, queries, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8)]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def run(function, *args):
    lowered = jax.jit(function, compiler_options=QUICK_COMPILE).lower(*args)
    return lowered.compile()(*args), lowered.as_text()


@pytest.mark.parametrize('chunk', [3, 5, 9])
def test_chunks_equal_the_whole(monkeypatch, chunk):
    function = functools.partial(attend, scale=0.7, key_lengths_B=jnp.array([4, 7]))
    whole, text = run(function, *arrays())
    assert 'while' not in text
    monkeypatch.setattr(attention_ops, 'MAX_SCORE_BYTES', 4 * 6 * 7 * chunk)
    chunked, text = run(lambda *args: function(*args), *arrays())
    assert 'while' in text and f'2x{chunk}x3x8xf32' in text
    np.testing.assert_allclose(chunked, whole, atol=1e-6)


def test_gradients_equal_too(monkeypatch):
    def loss(*args):
        return jnp.square(attend(*args, scale=1.0)).sum()

    whole, _ = run(jax.grad(loss, argnums=(0, 1, 2)), *arrays())
    monkeypatch.setattr(attention_ops, 'MAX_SCORE_BYTES', 4 * 6 * 7 * 4)
    chunked, _ = run(jax.grad(lambda *args: loss(*args), argnums=(0, 1, 2)), *arrays())
    for ours, wanted in zip(chunked, whole, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_a_mask_is_for_few_queries(monkeypatch):
    monkeypatch.setattr(attention_ops, 'MAX_SCORE_BYTES', 1)
    mask_LS = np.tri(10, 7, dtype=bool)
    _, text = run(functools.partial(attend, scale=1.0, mask_LS=mask_LS), *arrays())
    assert 'while' not in text


def test_the_last_scale_of_a_2b_model_is_cut_and_small_ones_are_not():
    length = chunk_length(2 * 16, 4096, 10521)
    assert length % 64 == 0 and 4 * 32 * length * 10521 <= attention_ops.MAX_SCORE_BYTES < 2**30
    assert chunk_length(2 * 8, 256, 521) == 256
    assert chunk_length(10**6, 4096, 10521) == 1
