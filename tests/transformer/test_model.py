import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import QUICK_COMPILE, SCHEDULE, TRANSFORMER, text, transformer_variables

from infinity_jax.config import PRESETS
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.attention_ops import query_groups
from infinity_jax.transformer.layers import sample_kept
from infinity_jax.transformer.model import (
    Transformer,
    check_schedule,
    init_transformer,
    transformer_shapes,
)

pytestmark = pytest.mark.numeric

# The last scale is attended alone, the others under one mask.
LONG_SCHEDULE = ScaleSchedule.free(((1, 1), (2, 2), (3, 2), (11, 12)))

# The released 2B and 8B are counted in their state dicts; others go by their names.
PARAMETERS = {
    '125m': 125e6,
    '361m': 361e6,
    '940m': 940e6,
    '2b': 2_204_564_032,
    '2.2b': 2.2e9,
    '4.7b': 4.7e9,
    '8b': 8_375_791_824,
    '20b': 20e9,
}


def inputs(schedule=SCHEDULE, batch=3, d=4, seed=0):
    shape = (batch, schedule.num_tokens - 1, d)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def uncompiled(config=TRANSFORMER, schedule=SCHEDULE):
    """A function of variables, text features, lengths, inputs, dropped and key, to logits."""

    def run(variables, text_BTE, lengths_B, inputs_BLd, dropped_B=None, key=None):
        return Transformer(config).apply(
            variables,
            text_BTE,
            lengths_B,
            inputs_BLd,
            schedule,
            drop_condition_B=dropped_B,
            kept=None if key is None else sample_kept(key, config, inputs_BLd.shape[0]),
        )

    return run


@functools.cache
def forward(config=TRANSFORMER, schedule=SCHEDULE):
    return jax.jit(uncompiled(config, schedule), compiler_options=QUICK_COMPILE)


@pytest.mark.parametrize('schedule', [SCHEDULE, LONG_SCHEDULE])
def test_no_scale_sees_later_inputs_and_all_see_their_own_and_earlier(schedule):
    masks = [group.mask is None for group in query_groups(schedule)]
    assert masks == ([False, True] if schedule is LONG_SCHEDULE else [False])
    variables, (features, lengths) = transformer_variables(), text(1)
    x = inputs(schedule, batch=1)
    weights = np.random.default_rng(1).standard_normal((1, schedule.num_tokens, 4, 2))
    of_scale = np.zeros((len(schedule), *weights.shape), np.float32)
    for k, (start, end) in enumerate(schedule.spans):
        of_scale[k, :, start:end] = weights[:, start:end]

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def gradients(x, cotangents):
        run = uncompiled(schedule=schedule)
        _, pull = jax.vjp(lambda x: run(variables, features, lengths, x), x)
        return jax.vmap(pull)(cotangents)[0]

    gradient_KBLd = gradients(x, of_scale)
    for k, (_, end) in enumerate(schedule.spans):
        size_L = np.abs(gradient_KBLd[k]).max((0, 2))  # token t's input is at t − 1
        assert (size_L[end - 1 :] == 0).all()
        assert (size_L[: end - 1] > 1e-7).all()


def test_gradient_reaches_the_text_and_not_its_padding():
    variables, (features, lengths) = transformer_variables(), text()
    x = inputs()

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def gradient_of(features):
        run = uncompiled()
        return jax.grad(lambda f: jnp.square(run(variables, f, lengths, x)).sum())(features)

    gradient = gradient_of(features)
    present = np.arange(features.shape[1])[None] < np.asarray(lengths)[:, None]
    assert (np.abs(gradient).max(-1)[present] > 0).all()
    assert (np.asarray(gradient)[~present] == 0).all()


def test_padding_of_the_text_changes_nothing():
    variables, (features, lengths) = transformer_variables(), text()
    plain = forward()(variables, features, lengths, inputs())
    padding = np.arange(features.shape[1])[None, :, None] >= np.asarray(lengths)[:, None, None]
    noisy = jnp.where(padding, 99.0, features)
    np.testing.assert_array_equal(forward()(variables, noisy, lengths, inputs()), plain)
    cut = forward()(variables, features[:1, :5], lengths[:1], inputs()[:1])
    np.testing.assert_allclose(cut, plain[:1], atol=1e-5 * np.abs(plain).max())


def test_dropped_condition_is_the_learned_text_at_the_same_length():
    variables, (features, lengths) = transformer_variables(), text()
    x = inputs()
    plain = forward()(variables, features, lengths, x)
    mixed = forward()(variables, features, lengths, x, jnp.array([False, True, False]))
    learned = variables['params']['unconditional_text'][None]
    replaced = forward()(variables, jnp.repeat(learned, 3, 0), lengths, x)
    scale = np.abs(plain).max()
    np.testing.assert_allclose(mixed[1], replaced[1], atol=1e-6 * scale)
    np.testing.assert_allclose(mixed[::2], plain[::2], atol=1e-6 * scale)
    assert np.abs(mixed[1] - plain[1]).max() > 0.01 * scale


def test_stochastic_depth_spares_block_zero_and_is_sampled_per_image():
    config = dataclasses.replace(TRANSFORMER, drop_path=0.5)
    variables, (features, lengths) = transformer_variables(), text(1)
    same = [jnp.repeat(x, 24, 0) for x in (features, lengths, inputs(batch=1))]
    run = forward(config)
    sampled = np.asarray(run(variables, *same, None, jax.random.key(0)))
    plain = np.asarray(forward(config)(variables, *same))[0]
    kinds = np.unique(np.round(sampled.reshape(24, -1), 3), axis=0)
    assert len(kinds) == 4  # of the last block: self-attention and FFN, each kept or not
    assert (np.abs(kinds - plain.reshape(1, -1)).max(1) > 0.01).all()  # kept ones count double
    other = run(variables, *same, None, jax.random.key(1))
    assert (np.abs(other - sampled).max((1, 2, 3)) > 0.01).any()


def test_stochastic_depth_drops_whole_updates_and_scales_kept_ones():
    """At rate ½ a kept update counts twice: doubling the gates gives one of the sampled results."""
    config = dataclasses.replace(TRANSFORMER, drop_path=0.5)
    variables, (features, lengths) = transformer_variables(), text(1)
    same = [jnp.repeat(x, 24, 0) for x in (features, lengths, inputs(batch=1))]
    run = forward(config)
    sampled = np.asarray(run(variables, *same, None, jax.random.key(0)))
    params = dict(variables['params'])
    blocks = dict(params['blocks'])
    attention, ffn = dict(blocks['self_attention']), dict(blocks['ffn'])
    factors = jnp.array([1.0, 2.0])  # by block
    attention['out'] = jax.tree.map(
        lambda w: w * factors.reshape(2, *[1] * (w.ndim - 1)), attention['out']
    )
    ffn['down'] = jax.tree.map(lambda w: w * factors.reshape(2, *[1] * (w.ndim - 1)), ffn['down'])
    params['blocks'] = blocks | {'self_attention': attention, 'ffn': ffn}
    doubled = forward()({'params': params}, *(x[:1] for x in same))
    errors = np.abs(sampled - doubled).max((1, 2, 3))
    assert (errors < 1e-4 * np.abs(doubled).max()).any()


def test_without_drop_path_nothing_is_sampled():
    assert (
        sample_kept(jax.random.key(0), dataclasses.replace(TRANSFORMER, drop_path=0.0), 3) is None
    )


def test_trace_shows_every_block_and_the_same_logits():
    variables, (features, lengths) = transformer_variables(), text()
    model = Transformer(TRANSFORMER)

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def run(variables):
        return model.apply(variables, features, lengths, inputs(), SCHEDULE, method='trace')

    trace = run(variables)
    assert trace.blocks.shape == (2, 3, SCHEDULE.num_tokens, 32)
    assert trace.pooled_BD.shape == (3, 32) and trace.context_BTD.shape == (3, 8, 32)
    plain = forward()(variables, features, lengths, inputs())
    np.testing.assert_allclose(trace.logits, plain, atol=1e-5 * np.abs(plain).max())
    assert np.abs(trace.blocks[1] - trace.blocks[0]).max() > 0.1


def test_residual_stream_and_logits_stay_float32_under_bfloat16():
    config = dataclasses.replace(TRANSFORMER, dtype='bfloat16')
    variables, (features, lengths) = transformer_variables(), text()
    model = Transformer(config)

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def run(variables):
        return model.apply(variables, features, lengths, inputs(), SCHEDULE, method='trace')

    trace = run(variables)
    assert trace.blocks.dtype == trace.logits.dtype == jnp.float32
    plain = forward()(variables, features, lengths, inputs())
    error = np.linalg.norm(trace.logits - plain) / np.linalg.norm(plain)
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize('name', sorted(PRESETS))
def test_every_preset_has_the_parameters_of_its_name(name):
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(transformer_shapes(PRESETS[name])))
    if isinstance(PARAMETERS[name], int):
        assert count == PARAMETERS[name]
    assert count == pytest.approx(PARAMETERS[name], rel=0.03)


@pytest.mark.parametrize('name', ['2b', '8b'])
def test_released_sizes_trace_forward_at_their_full_budget(name):
    config = PRESETS[name]
    schedule = ScaleSchedule.for_image(1.5, '1M')
    variables = {'params': transformer_shapes(config)}
    spec = jax.ShapeDtypeStruct
    logits = jax.eval_shape(
        lambda *args: Transformer(config).apply(*args, schedule),
        variables,
        spec((2, 512, 2048), jnp.bfloat16),
        spec((2,), jnp.int32),
        spec((2, schedule.num_tokens - 1, config.token_bits), jnp.float32),
    )
    assert logits.shape == (2, 10997, config.token_bits, 2) and logits.dtype == jnp.float32


def test_start_values():
    config = dataclasses.replace(TRANSFORMER, width=64, text_channels=64)
    schedule = ScaleSchedule.free(((1, 1), (1, 1)))
    init = functools.partial(init_transformer, Transformer(config), schedule=schedule)
    quick = jax.jit(init, compiler_options=QUICK_COMPILE)
    params = nn.unbox(quick(jax.random.key(0)))['params']
    std, blocks = (1 / (3 * 64)) ** 0.5, params['blocks']
    wanted = [
        (blocks['self_attention']['qkv']['kernel'], std),
        (blocks['self_attention']['out']['kernel'], std / 2),  # 1/√(2 · depth)
        (blocks['cross_attention']['query']['kernel'], std),
        (blocks['cross_attention']['out']['kernel'], std / 2),
        (blocks['ffn']['up']['kernel'], std),
        (blocks['ffn']['down']['kernel'], std / 2),
        (blocks['modulation_table'][:, :2], 5e-6 / 8),
        (blocks['modulation_table'][:, 2:], 1e-3 / 8),
        (params['level_embed'], std),
        (params['word_embed']['kernel'], std),
        (params['text_project_in']['kernel'], std),
        (params['shared_modulation']['kernel'], std),
        (params['head_modulation']['kernel'], std * 1e-3),
        (params['head']['kernel'], std * 0.02),
    ]
    for leaf, size in wanted:
        assert np.std(leaf) == pytest.approx(size, rel=0.15)
    np.testing.assert_allclose(blocks['self_attention']['log_scale'], np.log(4), rtol=1e-6)
    assert 0.1 < np.abs(params['unconditional_text']).max() <= 2 / 64**0.5
    zeros = (leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
             if 'bias' in path[-1].key)  # fmt: skip
    assert all((leaf == 0).all() for leaf in zeros)
    first, second = blocks['self_attention']['qkv']['kernel']
    assert (first != second).any()  # layers start apart


def test_text_longer_than_the_learned_one_is_a_user_error():
    features, lengths = jnp.zeros((1, 9, 16)), jnp.array([9])
    with pytest.raises(UserError, match='text of 9 tokens is longer than transformer.text_l'):
        forward()(transformer_variables(), features, lengths, inputs(batch=1), jnp.array([True]))


@pytest.mark.parametrize(
    'grids, message',
    [
        (((2, 2), (4, 4)), r'must start at \(1, 1\)'),
        (((1, 1),) * 16, 'transformer.max_scales is 15'),
    ],
)
def test_schedules_that_the_model_cannot_follow_are_refused(grids, message):
    with pytest.raises(UserError, match=message):
        check_schedule(TRANSFORMER, ScaleSchedule.free(grids))
