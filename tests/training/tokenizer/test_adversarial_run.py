"""The adversarial phase on a toy: when it starts, what it changes, and that it resumes exactly."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.stride4 import EIGHT_BITS, GRIDS
from helpers.tiny import QUICK_COMPILE
from helpers.tiny_run import FIELDS

from infinity_jax.data.batch import Batch
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.training import loop
from infinity_jax.training.batches import put_batch
from infinity_jax.training.checkpoint import Checkpoints
from infinity_jax.training.config import step_key
from infinity_jax.training.metrics import read_metrics
from infinity_jax.training.optimizer import OptimizerConfig
from infinity_jax.training.tokenizer.adversarial import make_discriminator
from infinity_jax.training.tokenizer.config import (
    AdversarialConfig,
    TokenizerLosses,
    TokenizerRunConfig,
)
from infinity_jax.training.tokenizer.discriminator import generator_loss
from infinity_jax.training.tokenizer.noise import QuantizerTraining
from infinity_jax.training.tokenizer.step import (
    evaluation_step,
    forward,
    last_layer_gradient,
    loss_terms,
    sample_noise,
    train_step,
)
from infinity_jax.training.tokenizer.task import make_task
from infinity_jax.weights.model_folder import load_model

START = 2
CONFIG = TokenizerRunConfig(
    task='tokenizer',
    run_dir='nowhere',
    steps=6,
    batch_size=4,
    eval_every=6,
    sample_every=6,
    checkpoint_every=6,
    grids=GRIDS,
    losses=TokenizerLosses(truncated=0.5),
    adversarial=AdversarialConfig(
        weight=0.3,
        start_step=START,
        adaptive=True,
        channels=8,
        layers=1,
        optimizer=OptimizerConfig(learning_rate=1e-3),
    ),
    tokenizer=EIGHT_BITS,
    **FIELDS,
)
MODEL = Autoencoder(CONFIG.tokenizer)
# The first step of AdamW is the sign of the gradient, which would show rounding and hide size.
PLAIN = OptimizerConfig(learning_rate=1e-2, ema_decay=0.5, epsilon=1.0, clip_norm=1e3)


def run(config):
    mesh = make_mesh(devices=jax.devices()[:1])
    return loop.run(config, make_task(config, mesh), mesh)


@functools.cache
def start():
    mesh = make_mesh(devices=jax.devices()[:1])
    task = make_task(CONFIG, mesh)
    batches = [Batch(next(task.batches).pixels_BYX3) for _ in range(START + 1)]
    task.batches.close()
    return task.init(jax.random.key(0)), batches


@functools.cache
def compiled(config=CONFIG):
    return jax.jit(functools.partial(train_step, model=MODEL, config=config))


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_both_networks_train_from_the_start_step_on():
    state, batches = start()
    for step, batch in enumerate(batches):
        before, (state, metrics) = state, compiled()(state, None, batch)
        assert all(np.isfinite(value).all() for value in metrics.values())
        assert not same(before.params, state.params)
        started = step >= START
        assert same(before.discriminator, state.discriminator) == (not started)
        assert (metrics['discriminator'] > 0) == started
        assert (metrics['adversarial_weight'] > 0) == started
    assert state.discriminator.updates == 1
    real = 0.9 * metrics['logit_real']  # from 0, with a decay of (1 + 0) / (10 + 0) at first
    assert state.discriminator.mean_real == pytest.approx(float(real), rel=1e-5)
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(state))


def test_before_its_start_the_term_changes_nothing():
    state, batches = start()
    off = dataclasses.replace(CONFIG, adversarial=AdversarialConfig())
    with_term, _ = compiled()(state, None, batches[0])
    without, _ = compiled(off)(state, None, batches[0])
    for a, b in zip(jax.tree.leaves(with_term.params), jax.tree.leaves(without.params)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_batch_in_parts_gives_the_update_of_the_whole_one():
    """The entropy penalty and the adaptive weight, which are means over a part, are off."""
    whole = dataclasses.replace(
        CONFIG,
        losses=TokenizerLosses(truncated=0.5, entropy=0.0),
        quantizer=QuantizerTraining(scale_drop=0.5, keep_first=True),
        adversarial=dataclasses.replace(
            CONFIG.adversarial, adaptive=False, start_step=0, optimizer=PLAIN
        ),
        optimizer=PLAIN,
    )
    parts = dataclasses.replace(whole, accumulate_steps=2)
    state, batches = start()
    (a, metrics), (b, of_parts) = (compiled(c)(state, None, batches[0]) for c in (whole, parts))
    assert not same(a.params, state.params)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    for name in ('loss', 'psnr', 'truncated', 'adversarial', 'lecam', 'grad_norm'):
        np.testing.assert_allclose(metrics[name], of_parts[name], rtol=1e-4, atol=1e-7)
    evaluate = functools.partial(evaluation_step, state.ema, None, batches[0], model=MODEL)
    (metrics, strip), (of_parts, strip_of_parts) = (evaluate(config=c) for c in (whole, parts))
    np.testing.assert_allclose(strip, strip_of_parts, atol=1e-5)
    assert metrics['psnr'] == pytest.approx(float(of_parts['psnr']), rel=1e-4)


def test_gradient_equals_the_plain_sum_of_all_losses():
    """The step pulls one summed gradient back; here the weighted losses are one function."""
    fixed = dataclasses.replace(
        CONFIG,
        adversarial=dataclasses.replace(CONFIG.adversarial, adaptive=False, start_step=0),
    )
    state, batches = start()
    target = batches[0].pixels_BYX3 / np.float32(127.5) - 1

    @jax.jit
    def norm(params):
        def loss(params):
            noise = sample_noise(step_key(fixed.seed, state.step), target, fixed)
            outputs = forward(MODEL, params, target, fixed, noise)[0]
            total, _ = loss_terms(outputs, target, None, fixed.losses)
            judged = make_discriminator(fixed).apply(
                {'params': state.discriminator.params}, outputs.pixels
            )
            return total + 0.3 * generator_loss(judged)

        value, grads = jax.value_and_grad(loss)(params)
        return value, jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))

    value, wanted = norm(state.params)
    _, metrics = compiled(fixed)(state, None, batches[0])
    assert metrics['loss'] == pytest.approx(float(value), rel=1e-5)
    assert metrics['grad_norm'] == pytest.approx(float(wanted), rel=1e-5)


def test_the_adaptive_weight_is_a_ratio_of_gradients_of_the_last_kernel():
    state, batches = start()
    state = state.replace(step=jnp.int32(START))
    target = batches[0].pixels_BYX3 / np.float32(127.5) - 1
    last = state.params['decoder']['conv_out']

    def plain(kernel):
        params = {**state.params}
        params['decoder'] = {**params['decoder'], 'conv_out': {**last, 'kernel': kernel}}
        noise = sample_noise(step_key(CONFIG.seed, state.step), target, CONFIG)
        outputs = forward(MODEL, params, target, CONFIG, noise)[0]
        # As in VQGAN, of the reconstruction alone: images decoded from fewer scales are apart.
        rec, _ = loss_terms(outputs._replace(truncated=None), target, None, CONFIG.losses)
        discriminator = {'params': state.discriminator.params}
        judged = make_discriminator(CONFIG).apply(discriminator, outputs.pixels)
        return jnp.stack([rec, -judged.mean()])

    both = jax.jit(jax.jacrev(plain), compiler_options=QUICK_COMPILE)(last['kernel'])
    rec, adversarial = np.linalg.norm(np.asarray(both).reshape(2, -1), axis=1)
    assert not 0.7 < rec / adversarial < 1.4  # so that their order matters
    wanted = 0.3 * min(rec / (adversarial + 1e-4), 1e4)
    _, metrics = compiled()(state, None, batches[0])
    assert metrics['adversarial_weight'] == pytest.approx(float(wanted), rel=1e-4)


def test_sharded_over_eight_devices_equals_one():
    plain = dataclasses.replace(PLAIN, learning_rate=1.0)
    config = dataclasses.replace(
        CONFIG,
        batch_size=8,
        optimizer=plain,
        adversarial=dataclasses.replace(CONFIG.adversarial, start_step=0, optimizer=plain),
    )
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(MeshConfig(data=-1, fsdp=min(2, len(devices))), devices)
        task = make_task(config, mesh)
        state, batch = task.init(jax.random.key(0)), put_batch(next(task.batches), mesh)
        task.batches.close()
        before = jax.device_get(state)  # the step takes its buffers
        results.append(jax.device_get(task.train_step(state, batch)))
    (one, metrics), (eight, of_eight) = results
    for name, value in metrics.items():
        np.testing.assert_allclose(of_eight[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    for x, y in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    trained = lambda state: (state.params, state.ema, state.discriminator.params)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), trained(one), trained(before))
    assert min(jax.tree.leaves(moved)) > 1e-4  # far more than the tolerance


def test_last_layer_gradient_is_the_one_of_that_kernel():
    state, _ = start()
    total = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
    cotangent = jax.random.normal(jax.random.key(1), (1, 16, 16, 3))

    def score(params):
        decoded, sown = MODEL.apply(
            {'params': params}, total, method=Autoencoder.decode, mutable='intermediates'
        )
        return jnp.sum(decoded * cotangent), sown['intermediates']['decoder']['last_hidden'][0]

    grads, hidden = jax.jit(jax.grad(score, has_aux=True))(state.params)
    wanted = grads['decoder']['conv_out']['kernel']
    ours = last_layer_gradient(MODEL, state.params, hidden)(cotangent)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('broken', ['image', 'discriminator', 'average'])
def test_a_step_that_is_not_finite_changes_neither_network(broken):
    state, batches = start()
    state = state.replace(step=jnp.int32(START))
    batch = batches[0]
    if broken == 'image':
        batch = Batch(np.full((4, 16, 16, 3), np.nan, np.float32))
    elif broken == 'average':  # which only the discriminator's own loss reads
        discriminator = state.discriminator.replace(mean_real=jnp.float32(jnp.nan))
        state = state.replace(discriminator=discriminator)
    else:
        params = jax.tree.map(lambda x: x * jnp.nan, state.discriminator.params)
        state = state.replace(discriminator=state.discriminator.replace(params=params))
    after, metrics = compiled()(state, None, batch)
    assert after.skipped == 1 and metrics['bad_in_a_row'] == 1
    assert same(after.params, state.params) and same(after.ema, state.ema)
    assert after.discriminator.updates == 0
    assert same(after.discriminator.opt_state, state.discriminator.opt_state)


def test_resume_in_the_adversarial_phase_is_exact_and_the_export_has_no_discriminator(tmp_path):
    whole = dataclasses.replace(CONFIG, run_dir=str(tmp_path / 'whole'))
    folder = run(whole)
    # At START + 2 steps, in the middle of the phase, then on in a new process's place.
    cut = dataclasses.replace(CONFIG, run_dir=str(tmp_path / 'cut'), checkpoint_every=START + 2)
    constant = dataclasses.replace(cut, steps=START + 2)
    run(constant)
    run(cut)
    keep = ('loss', 'discriminator', 'logit_real', 'logit_fake', 'lecam', 'adversarial_weight')
    records = [
        [{name: record[name] for name in keep} for record in read_metrics(config.run_dir)]
        for config in (whole, cut)
    ]
    assert records[0] == records[1] and records[0][-1]['discriminator'] > 0
    states = []
    for config in (whole, cut):
        task = make_task(config, make_mesh(devices=jax.devices()[:1]))
        checkpoints = Checkpoints(config.run_dir, 2)
        states.append(checkpoints.restore(CONFIG.steps, task.abstract_state))
        checkpoints.close()
        task.batches.close()
    assert same(*states)
    assert set(load_model(folder).tokenizer_params) == {'encoder', 'decoder'}
