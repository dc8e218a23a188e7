"""Splash attention, interpreted on CPU, and who chooses it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from infinity_jax.config import PRESETS
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, make_mesh, target_platform
from infinity_jax.transformer import remat, splash
from infinity_jax.transformer.attention_choice import choose
from infinity_jax.transformer.attention_ops import (
    _key_ends,
    attend,
    prefix_attention,
    query_groups,
    training_length,
)
from infinity_jax.transformer.splash_kernel import PrefixMask, make_kernel

SCHEDULE = ScaleSchedule.free(((1, 1), (2, 2), (4, 4), (6, 6), (10, 10)))  # 157 tokens
GROUPS = query_groups(SCHEDULE)
MESH = MeshConfig(data=1, fsdp=2, tensor=2, sequence=2)


@functools.cache
def arrays():
    shape = (3, 4, SCHEDULE.num_tokens, 2, 8)
    q, k, v = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return 3 * q, k, v


def of_text():
    q, k, v = arrays()
    return q, k[:, :40], v[:, :40]


def whole(implementation, q, k, v):
    return prefix_attention(q, k, v, GROUPS, implementation)


def to_text(implementation, q, k, v):
    lengths = jnp.array([40, 1, 7, 33])
    return attend(q, k, v, scale=0.4, key_lengths_B=lengths, implementation=implementation)


def to_cache(implementation, q, k, v):
    return attend(q[:, :140], k, v, scale=1.0, implementation=implementation)


def values_and_gradients(function, implementation, args):
    def loss(*args):
        attended = function(implementation, *args)
        weights = jnp.cos(jnp.arange(attended.size)).reshape(attended.shape)
        return jnp.sum(attended * weights), attended

    (_, attended), gradients = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    )(*args)  # fmt: skip
    return (attended, *gradients)


def assert_equal(ours, wanted):
    for x, y in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())


@functools.cache
def on_xla(function):
    return values_and_gradients(function, 'xla', of_text() if function is to_text else arrays())


@pytest.mark.parametrize('function', [whole, to_text, to_cache])
def test_splash_equals_xla_in_values_and_gradients(function):
    args = of_text() if function is to_text else arrays()
    assert_equal(values_and_gradients(function, 'splash', args), on_xla(function))


@pytest.mark.parametrize('function', [whole, to_text])
def test_splash_on_a_mesh_equals_xla_without(function):
    args = of_text() if function is to_text else arrays()
    with jax.set_mesh(make_mesh(MESH)):
        assert_equal(values_and_gradients(function, 'splash', args), on_xla(function))


def test_float32_products_are_exact_in_the_gradient_too():
    def loss(*args):
        return jnp.sum(whole('splash', *args))

    jaxpr = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arrays()))
    assert jaxpr.count('pallas_call') == 2  # values, all gradients
    assert jaxpr.count('HIGHEST') == 2 * jaxpr.count('dot_general') > 0


@pytest.mark.parametrize('parts', [1, 2])
def test_gradients_in_columns_and_from_two_kernels(monkeypatch, parts):
    monkeypatch.setattr(splash, 'MAX_COLUMNS', 128)
    monkeypatch.setattr(splash, 'MAX_PARTS', parts)
    assert splash.gradient_block(256, 128) == (128 if parts == 2 else None)
    assert_equal(values_and_gradients(whole, 'splash', arrays()), on_xla(whole))


def test_one_gradient_kernel_serves_what_it_can_hold():
    assert splash.gradient_block(10_752, 512) == 3584  # three columns of seven blocks
    assert splash.gradient_block(2560, 512) == 2560
    assert splash.gradient_block(512, 512) == 512
    assert splash.gradient_block(640, 128) == 640
    assert splash.gradient_block(13 * 512, 512) is None  # thirteen columns


def test_long_sequences_are_filled_up_before_the_first_layer():
    assert [splash.filled_length(n) for n in (521, 2521, 10_521)] == [521, 2560, 10_752]
    length = lambda name: training_length(10_521, PRESETS['2b'], name)
    assert on('tpu', length, 'auto') == 10_752
    assert on('cpu', length, 'auto') == 10_521
    assert on('gpu', length, 'auto') == 10_528  # rows of cuBLAS: a multiple of 8
    with jax.set_mesh(make_mesh(MESH)):
        assert length('xla') == 10_522


def test_queries_that_smaller_blocks_fit_are_not_padded():
    found = [splash.query_block(n, 512) for n in (4096, 2304, 1600, 10_521)]
    assert found == [512, 384, 512, 512]
    assert splash.query_block(200, 128) == 128
    assert splash.query_block(768, 512, parts=2) == 384
    assert splash.query_block(769, 512, parts=2) == 512  # 385 and 384 queries


def test_such_blocks_have_the_same_values_and_gradients(monkeypatch):
    monkeypatch.setattr(splash, 'LONG', 384)
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 600, 2, 8)).astype(np.float32)
    args = (q[:, :384], k, v)

    def every_key(implementation, *args):
        return attend(*args, scale=0.4, implementation=implementation)

    found, wanted = (values_and_gradients(every_key, name, args) for name in ('splash', 'xla'))
    assert_equal(found, wanted)


def test_what_fills_up_changes_no_value_and_no_gradient():
    fill = ((0, 0), (0, 256 - SCHEDULE.num_tokens), (0, 0), (0, 0))

    def filled(implementation, *args):
        args = (jnp.pad(x, fill, constant_values=7) for x in args)
        return whole(implementation, *args)[:, : SCHEDULE.num_tokens]

    assert_equal(values_and_gradients(filled, 'splash', arrays()), on_xla(whole))


def test_blocks_that_no_query_sees_are_skipped():
    groups = query_groups(ScaleSchedule.for_image(1.0, '1M'))
    ends = np.pad(_key_ends(groups), (0, 231), constant_values=10_521)
    mask, blocks = PrefixMask(ends, 10_752), splash.kernel_blocks(10_752, 512, 512)
    kernel = make_kernel(mask, 2, 1, blocks, splash.ATTENDED)
    done = np.count_nonzero(kernel.fwd_mask_info.block_mask)
    seen = sum(end > key for end in ends.reshape(21, 512).max(1) for key in range(0, 10_752, 512))
    assert done == seen < 0.7 * 21**2


def on(platform, function, *args):
    """`function` as it is traced for one device of a platform."""
    device = AbstractDevice(device_kind='some', num_cores=1, platform=platform)
    mesh = AbstractMesh(
        (1, 1, 1, 1), ('data', 'fsdp', 'tensor', 'sequence'), abstract_device=device
    )
    with jax.sharding.use_abstract_mesh(mesh):
        return function(*args)


def queries(dtype=jnp.bfloat16, length=200, width=128):
    return jax.ShapeDtypeStruct((1, length, 2, width), dtype)


def test_the_platform_is_that_of_the_mesh():
    assert target_platform() == 'cpu'
    assert [on(name, target_platform) for name in ('tpu', 'gpu', 'cpu')] == ['tpu', 'gpu', 'cpu']


@pytest.mark.parametrize(
    ('platform', 'query', 'wanted'),
    [
        ('tpu', queries(), 'splash'),
        ('tpu', queries(jnp.float32), 'splash'),
        ('tpu', queries(length=100), 'xla'),
        ('gpu', queries(), 'cudnn'),
        ('gpu', queries(length=100), 'xla'),
        ('gpu', queries(jnp.float32), 'xla'),
        ('gpu', queries(width=100), 'xla'),
        ('cpu', queries(), 'xla'),
    ],
)
def test_auto_goes_by_platform_and_shape(platform, query, wanted):
    assert on(platform, choose, 'auto', query) == wanted


@pytest.mark.parametrize(
    ('platform', 'name', 'query', 'message'),
    [
        ('cpu', 'cudnn', queries(), "'cudnn', which is for NVIDIA GPUs, and the platform is 'cpu'"),
        ('tpu', 'cudnn', queries(), "the platform is 'tpu'"),
        ('gpu', 'cudnn', queries(jnp.float32), 'in float32: set their dtype to bfloat16'),
        ('gpu', 'cudnn', queries(width=256), 'heads of 256'),
        ('gpu', 'splash', queries(), 'which is for TPU'),
        ('cpu', 'flash', queries(), "'flash'; wanted auto, xla, cudnn, splash"),
    ],
)
def test_what_cannot_run_is_a_user_error(platform, name, query, message):
    with pytest.raises(UserError, match=message):
        on(platform, choose, name, query)


def test_cudnn_is_called_without_masks(monkeypatch):
    calls = []

    def record(q, k, v, **options):
        calls.append(options)
        return q

    monkeypatch.setattr(jax.nn, 'dot_product_attention', record)
    q, k, v = (x.astype(jnp.bfloat16) for x in arrays())
    # Traced alone: a computation for a platform without a device cannot run.
    on('gpu', jax.eval_shape, functools.partial(whole, 'cudnn'), q, k, v)
    on('gpu', jax.eval_shape, functools.partial(to_text, 'auto'), q, k, v)
    used = [(call['implementation'], call['mask'] is None) for call in calls]
    # The first scales share one small mask and are left to XLA.
    assert used == [('xla', False), ('cudnn', True), ('cudnn', True)]
    assert calls[-1]['key_value_seq_lengths'] is not None


@pytest.mark.parametrize('sequence', [1, 2])
def test_a_policy_keeps_the_output_of_self_attention_alone(sequence):
    """Kernels of value and gradient: a second forward one where it is computed again."""

    def kernels(attention, *shapes):
        kept = jax.checkpoint(attention, policy=remat.POLICIES['attention'])
        gradient = jax.grad(lambda *args: kept(*args).sum())
        return str(jax.make_jaxpr(gradient)(*shapes)).count('pallas_call[')

    q, text = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in of_text()[:2])
    mesh = make_mesh(MeshConfig(sequence=sequence, data=1), jax.devices()[:sequence])
    with jax.set_mesh(mesh):
        whole_again = kernels(functools.partial(whole, 'splash'), q, q, q)
        text_again = kernels(functools.partial(to_text, 'splash'), q, text, text)
    assert text_again == whole_again + 1
