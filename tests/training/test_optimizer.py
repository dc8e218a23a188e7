"""Weight decay, the schedule, the clip, averages, and steps that are not finite."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infinity_jax.config import PRESETS
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.training.optimizer import (
    OptimizerConfig,
    apply_gradients,
    decay_mask,
    make_optimizer,
    make_schedule,
    new_state,
)
from infinity_jax.transformer.model import Transformer, init_transformer

pytestmark = pytest.mark.numeric

CONFIG = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, ema_decay=0.5)


def params():
    return {'dense': {'kernel': jnp.ones((3, 2)), 'bias': jnp.ones(2)}}


def test_the_first_moment_in_bfloat16():
    optimizers = [
        make_optimizer(OptimizerConfig(learning_rate=1e-2, **fields), 100)
        for fields in ({}, {'mu_dtype': 'bfloat16'})
    ]
    states = [new_state(params(), optimizer) for optimizer in optimizers]
    adam = optax.tree.get(states[1].opt_state, 'ScaleByAdamState')
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.mu)} == {jnp.dtype('bfloat16')}
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.nu)} == {jnp.dtype('float32')}
    for step in range(5):
        grads = jax.tree.map(lambda p, step=step: jnp.cos(step + p), states[0].params)
        states = [
            apply_gradients(state, grads, jnp.float32(1), optimizer, CONFIG)[0]
            for state, optimizer in zip(states, optimizers, strict=True)
        ]
    full, rounded = (state.params['dense']['kernel'] for state in states)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, full, atol=5 * 1e-2 * 2**-8)  # five updates of 1e-2
    assert (rounded != full).any()
    with pytest.raises(UserError, match="mu_dtype is 'int8'; wanted 'float32' or 'bfloat16'"):
        OptimizerConfig(learning_rate=1e-2, mu_dtype='int8')


def test_decay_mask_of_the_transformer():
    schedule = ScaleSchedule.free(((1, 1), (2, 2)))
    model = Transformer(PRESETS['125m'])
    shapes = jax.eval_shape(lambda k: init_transformer(model, k, schedule), jax.random.key(0))
    mask = decay_mask(nn.unbox(shapes)['params'])
    flat = jax.tree_util.tree_flatten_with_path(mask)[0]
    decayed = {jax.tree_util.keystr(p, simple=True, separator='/') for p, yes in flat if yes}
    names = {jax.tree_util.keystr(p, simple=True, separator='/') for p, _ in flat}
    assert decayed == {name for name in names if name.endswith('/kernel')} != set()
    # The same leaves whether or not they still carry their logical axes.
    boxed = nn.unbox(decay_mask(shapes['params']))
    assert jax.tree.leaves(boxed) == jax.tree.leaves(mask)


def test_constant_schedule_is_exactly_the_configured_rate():
    schedule = make_schedule(OptimizerConfig(learning_rate=6e-5), 100)
    assert [float(schedule(i)) for i in (0, 50, 1000)] == [float(np.float32(6e-5))] * 3


def test_warm_up_and_cosine():
    config = OptimizerConfig(
        learning_rate=1.0, warmup_steps=10, decay='cosine', final_learning_rate=0.1
    )
    schedule = make_schedule(config, 110)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(9) == pytest.approx(1.0)
    assert schedule(60) == pytest.approx(0.55)
    assert schedule(110) == pytest.approx(0.1) == schedule(500)


def test_unknown_decay_is_named():
    with pytest.raises(UserError, match="optimizer.decay is 'linear'"):
        make_schedule(OptimizerConfig(learning_rate=1.0, decay='linear'), 10)


@pytest.mark.parametrize(
    'field',
    [
        {'learning_rate': -1.0},
        {'learning_rate': float('nan')},
        {'clip_norm': float('inf')},
        {'weight_decay': -0.1},
        {'beta2': 1.0},
        {'epsilon': 0.0},
        {'ema_decay': 1.5},
        {'warmup_steps': -1},
    ],
    ids=str,
)
def test_impossible_numbers_are_named(field):
    ((name, value),) = field.items()
    with pytest.raises(UserError, match=f'optimizer.{name} is {value}; wanted'):
        OptimizerConfig(**{'learning_rate': 1e-3, **field})


def test_bias_does_not_decay_and_kernel_does():
    optimizer = make_optimizer(CONFIG, 10)
    state = new_state(params(), optimizer)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    state, _ = apply_gradients(state, zeros, jnp.float32(1.0), optimizer, CONFIG)
    np.testing.assert_allclose(state.params['dense']['kernel'], 1 - 1e-2 * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(state.params['dense']['bias'], 1.0)


def test_clip_is_of_the_global_norm():
    config = OptimizerConfig(learning_rate=1.0, clip_norm=5.0, weight_decay=0.0)
    grads = {'a': jnp.full(3, 100.0), 'b': jnp.full(1, 100.0)}
    optimizer = make_optimizer(config, 10)
    state = new_state(grads, optimizer)
    state, metrics = apply_gradients(state, grads, jnp.float32(0.0), optimizer, config)
    assert metrics['grad_norm'] == pytest.approx(200.0)  # reported before clipping
    # After one step the first moment is (1 - beta1) times the clipped gradient.
    moment = optax.tree_utils.tree_get(state.opt_state, 'mu')
    assert optax.global_norm(moment) == pytest.approx((1 - config.beta1) * 5.0)


@pytest.mark.parametrize('broken', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_changes_nothing(broken):
    optimizer = make_optimizer(CONFIG, 10)
    start = new_state(params(), optimizer)
    loss = jnp.float32(jnp.nan if broken == 'loss' else 1.0)
    grads = jax.tree.map(jnp.ones_like, start.params)
    if broken == 'gradient':
        grads['dense']['bias'] = jnp.array([1.0, jnp.inf])
    state, metrics = apply_gradients(start, grads, loss, optimizer, CONFIG)
    for name in ('params', 'ema', 'opt_state'):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(start, name))
    assert (int(state.step), int(state.skipped), int(state.bad_in_a_row)) == (1, 1, 1)
    grads = jax.tree.map(jnp.ones_like, start.params)
    state, _ = apply_gradients(state, grads, jnp.float32(1.0), optimizer, CONFIG)
    assert (int(state.step), int(state.skipped), int(state.bad_in_a_row)) == (2, 1, 0)
    assert not np.array_equal(state.params['dense']['bias'], start.params['dense']['bias'])


def test_ema_rises_to_its_decay():
    optimizer = make_optimizer(CONFIG, 10)
    state = new_state(params(), optimizer)
    grads = jax.tree.map(jnp.ones_like, state.params)
    ema = np.ones(2)
    for step in range(12):
        state, _ = apply_gradients(state, grads, jnp.float32(1.0), optimizer, CONFIG)
        decay = min(0.5, (1 + step) / (10 + step))
        ema = decay * ema + (1 - decay) * np.asarray(state.params['dense']['bias'])
    np.testing.assert_allclose(state.ema['dense']['bias'], ema, rtol=1e-5)


def test_gradients_of_zero_are_clipped_to_zero():
    config = OptimizerConfig(learning_rate=1.0, clip_norm=5.0, weight_decay=0.0)
    optimizer = make_optimizer(config, 10)
    start = new_state(params(), optimizer)
    zeros = jax.tree.map(jnp.zeros_like, start.params)
    state, metrics = apply_gradients(start, zeros, jnp.float32(1.0), optimizer, config)
    assert metrics['grad_norm'] == 0 and metrics['skipped'] == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, start.params)
