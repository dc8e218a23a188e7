"""The discriminator's gradient, updates, schedule and weight, against plain definitions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import QUICK_COMPILE, lively

from infinity_jax.config import TokenizerConfig
from infinity_jax.data.config import DataConfig
from infinity_jax.training.optimizer import OptimizerConfig, TrainState
from infinity_jax.training.tokenizer.adversarial import (
    AdversarialState,
    AdversarialTerms,
    DiscriminatorState,
    adversarial_terms,
    discriminator_optimizer,
    make_discriminator,
    update_discriminator,
)
from infinity_jax.training.tokenizer.config import AdversarialConfig, TokenizerRunConfig

pytestmark = pytest.mark.numeric

START, STEPS, RATE, LECAM = 3, 7, 0.5, 0.7
MEAN_REAL, MEAN_FAKE = 0.4, -0.3
# Its first update is -RATE · g / (|g| + 1): neither clipped nor a mere sign.
PLAIN = OptimizerConfig(learning_rate=RATE, epsilon=1.0, weight_decay=0.0, clip_norm=0.0)
CONFIG = TokenizerRunConfig(
    task='tokenizer',
    run_dir='nowhere',
    steps=STEPS,
    batch_size=2,
    optimizer=OptimizerConfig(learning_rate=1e-2),
    data=DataConfig(image_size=12),
    grids=((1, 1), (3, 3)),
    adversarial=AdversarialConfig(
        weight=0.3, start_step=START, channels=8, layers=1, lecam=LECAM, optimizer=PLAIN
    ),
    tokenizer=TokenizerConfig(
        bits=4, base_channels=8, channel_multipliers=(1,), unshuffle=4, norm_groups=4
    ),
)


def fresh_params(config):
    shapes = jax.eval_shape(
        make_discriminator(config).init, jax.random.key(0), jnp.zeros((1, 12, 12, 3))
    )
    return lively(nn.unbox(shapes)['params'])


def state_of(params, config, step=START, means=(0.0, 0.0)):
    zero = jnp.zeros((), jnp.int32)
    discriminator = DiscriminatorState(
        params, discriminator_optimizer(config).init(params), *map(jnp.float32, means), zero
    )
    empty = TrainState(jnp.int32(step), {}, {}, (), zero, zero)
    return AdversarialState(**vars(empty), discriminator=discriminator)


def terms_with(gradients, logits=(0.0, 0.0)):
    """`AdversarialTerms` with the fields that `update_discriminator` reads."""
    metrics = dict(zip(('logit_real', 'logit_fake'), map(jnp.float32, logits), strict=True))
    return AdversarialTerms(metrics, jnp.zeros(()), gradients, jnp.zeros(()))


def test_gradient_and_update_are_those_of_hinge_and_lecam():
    rng = np.random.default_rng(0)
    fake, target = (jnp.asarray(rng.uniform(-1, 1, (2, 12, 12, 3)), jnp.float32) for _ in 'ab')
    model, params = make_discriminator(CONFIG), fresh_params(CONFIG)
    state = state_of(params, CONFIG, means=(MEAN_REAL, MEAN_FAKE))

    def plain(params):
        real, made = (model.apply({'params': params}, x) for x in (target, fake))
        hinge_loss = (jnp.maximum(1 - real, 0).mean() + jnp.maximum(1 + made, 0).mean()) / 2
        above, below = jnp.maximum(real - MEAN_FAKE, 0), jnp.maximum(MEAN_REAL - made, 0)
        lecam_loss = (above**2).mean() + (below**2).mean()
        return hinge_loss + LECAM * lecam_loss, (hinge_loss, lecam_loss, real.mean(), made.mean())

    def both(state):
        found = adversarial_terms(state, fake, target, fake, lambda gradient: gradient, CONFIG)
        new = update_discriminator(state, state, found, CONFIG)
        wanted = jax.value_and_grad(plain, has_aux=True)(state.discriminator.params)
        return found, new.discriminator.params, wanted

    compiled = jax.jit(both, compiler_options=QUICK_COMPILE)
    found, updated, ((loss, terms), wanted) = compiled(state)
    near = {'rtol': 1e-4, 'atol': 1e-6}
    for name, value in zip(('discriminator', 'lecam', 'logit_real', 'logit_fake'), terms):
        np.testing.assert_allclose(found.metrics[name], value, **near, err_msg=name)
    assert loss > terms[0] > 0 and abs(terms[2] - terms[3]) > 1e-3
    for ours, g in zip(jax.tree.leaves(found.gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, g, **near)
        assert np.abs(g).max() > 1e-3
    moved = jax.tree.map(lambda p, g: p - RATE * g / (jnp.abs(g) + 1), params, wanted)
    for ours, p in zip(jax.tree.leaves(updated), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(ours, p, **near)


def test_the_schedule_runs_from_the_first_update_to_the_last_step():
    """On a constant gradient Adam's update is the learning rate, here a cosine from RATE to 0."""
    cosine = dataclasses.replace(PLAIN, epsilon=1e-12, decay='cosine')
    adversarial = dataclasses.replace(CONFIG.adversarial, optimizer=cosine)
    config = dataclasses.replace(CONFIG, adversarial=adversarial)
    state, sizes = state_of({'bias': jnp.zeros(2)}, config, step=0), []
    found = terms_with({'bias': jnp.ones(2)})
    update = jax.jit(
        lambda state: update_discriminator(state, state, found, config),
        compiler_options=QUICK_COMPILE,
    )
    for step in range(STEPS):
        state = state.replace(step=jnp.int32(step))
        new = update(state)
        before, after = (s.discriminator.params['bias'] for s in (state, new))
        state = new
        sizes.append(float((before - after)[0]))
    shares = 0.5 * (1 + np.cos(np.pi * np.arange(STEPS - START) / (STEPS - START)))
    np.testing.assert_allclose(sizes, [0.0] * START + list(RATE * shares), rtol=1e-4)
    assert state.discriminator.updates == STEPS - START


def test_each_average_follows_its_own_logits():
    state = state_of({'bias': jnp.zeros(2)}, CONFIG)
    for logits in ((2.0, -1.0), (3.0, 0.5)):
        state = update_discriminator(
            state, state, terms_with({'bias': jnp.ones(2)}, logits), CONFIG
        )
    # Decays of (1 + n) / (10 + n): 1/10, then 2/11.
    wanted = [(0.9 * 2) * 2 / 11 + 3.0 * 9 / 11, (0.9 * -1) * 2 / 11 + 0.5 * 9 / 11]
    found = [state.discriminator.mean_real, state.discriminator.mean_fake]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_adaptive_weight_compares_both_gradients_at_the_last_layer():
    """The last layer is a matrix here, so that both gradients can be taken plainly."""
    limits = (1e4, 0.01)
    rng = np.random.default_rng(1)
    hidden, kernel, target = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((2, 12, 12, 4), (4, 3), (2, 12, 12, 3))
    )
    model, params = make_discriminator(CONFIG), fresh_params(CONFIG)
    decode = lambda kernel: jnp.einsum('byxc,cd->byxd', hidden, kernel, precision='highest')
    distance = lambda pixels: jnp.abs(pixels - target).mean()
    judge = lambda pixels: -model.apply({'params': params}, pixels).mean()

    def both(kernel):
        pixels, pull = jax.vjp(decode, kernel)
        last_layer = lambda gradient: pull(gradient)[0]
        state, of_pixels = state_of(params, CONFIG), jax.grad(distance)(pixels)

        def limited(limit):
            settings = dataclasses.replace(CONFIG.adversarial, adaptive=True, adaptive_limit=limit)
            config = dataclasses.replace(CONFIG, adversarial=settings)
            return adversarial_terms(state, pixels, target, of_pixels, last_layer, config)

        plain = [jax.grad(lambda k, f=f: f(decode(k)))(kernel) for f in (distance, judge)]
        return [limited(limit) for limit in limits], plain, jax.grad(judge)(pixels)

    found_terms, plain, of_judge = jax.jit(both, compiler_options=QUICK_COMPILE)(kernel)
    first, second = (np.linalg.norm(g) for g in plain)
    assert not 0.5 < first / second < 2  # so that their order matters
    for limit, found in zip(limits, found_terms, strict=True):
        wanted = 0.3 * np.clip(first / (second + 1e-4), 0, limit)
        np.testing.assert_allclose(found.metrics['adversarial_weight'], wanted, rtol=1e-4)
        wanted_gradient = wanted * of_judge
        np.testing.assert_allclose(found.pixels_gradient, wanted_gradient, rtol=1e-3, atol=1e-8)
