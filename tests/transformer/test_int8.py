"""8-bit weights and cache: close to the full ones, a quarter of float32's bytes, off by default."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.generation import GRIDS as SCHEDULE
from helpers.generation import generation_inputs
from helpers.tiny import QUICK_COMPILE, TRANSFORMER, transformer_variables

from infinity_jax.config import QuantizationConfig
from infinity_jax.errors import UserError
from infinity_jax.inference.generate import generate_bits
from infinity_jax.inference.sampling import GenerationSettings
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.transformer.int8 import Int8, quantize_kernels
from infinity_jax.transformer.kv_cache import KeyValueCache
from infinity_jax.transformer.model import Transformer
from infinity_jax.weights.placement import place, placed_shapes, quantize_params

WEIGHTS = QuantizationConfig(weights='int8')


def host_params():
    return jax.tree.map(np.asarray, transformer_variables()['params'])


@functools.partial(jax.jit, static_argnames='int8_cache', compiler_options=QUICK_COMPILE)
def forced(params, bits, int8_cache=False):
    """Logits of every scale, teacher-forced on the same bits."""
    generated = generate_bits(
        Transformer(TRANSFORMER),
        {'params': params},
        generation_inputs(),
        GenerationSettings(SCHEDULE, top_p=1.0, int8_cache=int8_cache),
        forced_bits=bits,
        keep_logits=True,
    )
    return generated.logits


@functools.cache
def bits():
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.random((3, h, w, 4)) < 0.5) for h, w in SCHEDULE.grids)


@functools.cache
def full():
    return np.concatenate(forced(host_params(), bits()), axis=1)


def error(logits):
    """Root mean square of what differs, over that of the logits."""
    difference = np.concatenate(logits, axis=1) - full()
    return (np.square(difference).mean() / np.square(full()).mean()) ** 0.5


def test_values_are_within_half_a_step_and_rows_of_zeros_stay():
    x = np.random.default_rng(0).standard_normal((5, 7, 16)).astype(np.float32)
    x[2, 3] = 0
    stored = Int8.of(jnp.asarray(x))
    assert stored.values.dtype == jnp.int8 and stored.scale.shape == (5, 7)
    assert (np.abs(np.asarray(stored.values)).max(-1)[x.any(-1)] == 127).all()
    half = np.asarray(stored.scale)[..., None] / 2
    assert (np.abs(stored.as_dtype(jnp.float32) - x) <= half * 1.001).all()
    assert (np.asarray(stored.as_dtype(jnp.float32))[2, 3] == 0).all()


def test_weights_in_8_bits_give_almost_the_same_logits():
    params = quantize_kernels(host_params())
    kernels = {p: leaf for p, leaf in flatten_dict(params).items() if leaf.dtype == np.int8}
    assert len(kernels) == 7 and all(path[0] == 'blocks' for path in kernels)
    for path, kernel in kernels.items():
        scale = flatten_dict(params)[(*path[:-1], 'kernel_scale')]
        wanted = flatten_dict(host_params())[path]
        assert (np.abs(kernel * scale[:, None] - wanted) <= scale[:, None] * 0.501).all()
    assert 1e-4 < error(forced(params, bits())) < 0.02


def test_a_cache_in_8_bits_gives_almost_the_same_logits():
    assert 1e-5 < error(forced(host_params(), bits(), int8_cache=True)) < 0.02


def test_a_cache_in_8_bits_has_a_quarter_of_the_bytes():
    def size(int8):
        cache = KeyValueCache.empty(TRANSFORMER, SCHEDULE, 2, int8)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(cache))

    scales = 2 * 2 * 2 * SCHEDULE.spans[-1][0] * 2 * 4
    assert size(True) == size(False) // 4 + scales


def test_a_cache_remembers_the_rows_and_tokens_that_were_stored():
    rng = np.random.default_rng(0)
    k, v = (jnp.asarray(rng.standard_normal((2, 2, 3, 16)), jnp.float32) for _ in range(2))
    for int8, tolerance in ((False, 0), (True, 0.03)):
        cache = KeyValueCache.empty(TRANSFORMER, SCHEDULE, 4, int8).store(jnp.int32(1), 2, k, v)
        found_k, found_v = cache.prefix(jnp.int32(1), 5, 2, jnp.float32)
        assert found_k.shape == (2, 2, 5, 16) and found_k.dtype == jnp.float32
        np.testing.assert_allclose(found_k[:, :, 2:], k, atol=tolerance)
        np.testing.assert_allclose(found_v[:, :, 2:], v, atol=tolerance)
        assert (found_k[:, :, :2] == 0).all()
        assert (cache.prefix(jnp.int32(0), 5, 4, jnp.float32)[0] == 0).all()
        assert (cache.prefix(jnp.int32(1), 5, 4, jnp.float32)[0][2:] == 0).all()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_shapes_are_known_before_the_weights(dtype):
    config = dataclasses.replace(TRANSFORMER, dtype=dtype)
    placed = place(quantize_params(host_params(), WEIGHTS), dtype, config)
    shapes = placed_shapes(config, dtype, WEIGHTS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), placed) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    assert quantize_params(placed, WEIGHTS) is placed  # done already


def test_several_devices_are_refused():
    with pytest.raises(UserError, match='weights in int8 are for one device'):
        quantize_params(host_params(), WEIGHTS, make_mesh(MeshConfig()))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'weights': 'int4'}, "weights is 'int4'; wanted 'full', 'int8' or 'auto'"),
        ({'unguided_scales': -1}, 'unguided_scales is -1'),
    ],
)
def test_unknown_savings_are_user_errors(fields, message):
    with pytest.raises(UserError, match=message):
        QuantizationConfig(**fields)
