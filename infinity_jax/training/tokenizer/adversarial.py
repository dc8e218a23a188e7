"""The adversarial half of a tokenizer's training step, and the discriminator's state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from infinity_jax.training.optimizer import TrainState, make_optimizer
from infinity_jax.training.tokenizer.config import TokenizerRunConfig
from infinity_jax.training.tokenizer.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    generator_loss,
    hinge,
    lecam,
)


class DiscriminatorState(flax.struct.PyTreeNode):
    """The part of the training state that belongs to the discriminator; never exported.

    Attributes:
      params: of `PatchDiscriminator`.
      opt_state: optax state of its own optimizer.
      mean_real, mean_fake: moving averages of the mean logits, for LeCam.
      updates: number of updates so far; int32.
    """

    params: Any
    opt_state: Any
    mean_real: jax.Array
    mean_fake: jax.Array
    updates: jax.Array


class AdversarialState(TrainState):
    """A tokenizer's training state with a discriminator; checkpointed as it is."""

    discriminator: DiscriminatorState


class AdversarialTerms(NamedTuple):
    """Adversarial losses and gradients of one batch; all zeros before `start_step`.

    Attributes:
      metrics: scalars for the log.
      pixels_gradient: gradient of the weighted generator loss with respect to the
        reconstructions, (B, Y, X, 3); None once it has been added to theirs.
      gradients: gradient of the discriminator's loss with respect to its parameters.
      finite: a scalar that is finite only if all of these are.
    """

    metrics: dict[str, jax.Array]
    pixels_gradient: jax.Array | None
    gradients: Any
    finite: jax.Array


def make_discriminator(config: TokenizerRunConfig) -> PatchDiscriminator:
    """The discriminator that the configuration describes."""
    adversarial = config.adversarial
    precision = jax.lax.Precision(config.precision)
    return PatchDiscriminator(adversarial.channels, adversarial.layers, precision)


def discriminator_optimizer(config: TokenizerRunConfig) -> optax.GradientTransformation:
    """The discriminator's optimizer; its schedule begins at the discriminator's first update."""
    steps = max(config.steps - config.adversarial.start_step, 1)
    return make_optimizer(config.adversarial.optimizer or config.optimizer, steps)


def add_discriminator(
    state: TrainState, key: jax.Array, image: tuple[int, int], config: TokenizerRunConfig
) -> AdversarialState:
    """The state, extended by a discriminator with random (boxed) parameters."""
    params = make_discriminator(config).init(key, jnp.zeros((1, *image, 3)))['params']
    discriminator = DiscriminatorState(
        params=params,
        opt_state=discriminator_optimizer(config).init(params),
        mean_real=jnp.zeros(()),
        mean_fake=jnp.zeros(()),
        updates=jnp.zeros((), jnp.int32),
    )
    return AdversarialState(
        step=state.step,
        params=state.params,
        ema=state.ema,
        opt_state=state.opt_state,
        skipped=state.skipped,
        bad_in_a_row=state.bad_in_a_row,
        discriminator=discriminator,
    )


def adversarial_terms(
    state: AdversarialState,
    pixels_BYX3: jax.Array,
    target_BYX3: jax.Array,
    reconstruction_gradient: jax.Array,
    last_layer: Callable[[jax.Array], Any],
    config: TokenizerRunConfig,
) -> AdversarialTerms:
    """Losses and gradients of discriminator and generator on one batch.

    Args:
      reconstruction_gradient: of the other terms with respect to the pixels, (B, Y, X, 3).
      last_layer: maps a gradient with respect to the pixels to the gradient of the decoder's last
        kernel.
    """
    model, settings = make_discriminator(config), config.adversarial
    discriminator = state.discriminator

    def logits(params, pixels):
        return model.apply({'params': params}, pixels)

    fake, pull_fake = jax.vjp(logits, discriminator.params, pixels_BYX3)
    real, pull_real = jax.vjp(lambda params: logits(params, target_BYX3), discriminator.params)

    def discriminator_loss(real, fake):
        hinge_loss = hinge(real, fake)
        lecam_loss = lecam(real, fake, discriminator.mean_real, discriminator.mean_fake)
        return hinge_loss + settings.lecam * lecam_loss, (hinge_loss, lecam_loss)

    loss_and_gradient = jax.value_and_grad(discriminator_loss, argnums=(0, 1), has_aux=True)
    (loss, (hinge_loss, lecam_loss)), (to_real, to_fake) = loss_and_gradient(real, fake)
    gradients = jax.tree.map(jnp.add, pull_real(to_real)[0], pull_fake(to_fake)[0])
    term, to_pixels = jax.value_and_grad(generator_loss)(fake)
    pixels_gradient = pull_fake(to_pixels)[1]
    weight = jnp.float32(settings.weight)
    if settings.adaptive:
        ours, adversarial = (
            jnp.linalg.norm(last_layer(g)) for g in (reconstruction_gradient, pixels_gradient)
        )
        weight *= adaptive_weight(ours, adversarial, settings.adaptive_limit)
    norm = optax.global_norm(gradients)
    metrics = {
        'adversarial': term,
        'adversarial_weight': weight,
        'discriminator': hinge_loss,
        'lecam': lecam_loss,
        'logit_real': jnp.mean(real),
        'logit_fake': jnp.mean(fake),
        'discriminator_grad_norm': norm,
    }
    terms = AdversarialTerms(
        metrics, weight * pixels_gradient, gradients, loss + weight * term + norm
    )
    # Computed and discarded before the start, at a cost of 2 % of a step at the released sizes: XLA
    # runs convolutions inside a conditional 35 times slower on a CPU.
    started = state.step >= settings.start_step
    return jax.tree.map(lambda x: jnp.where(started, x, jnp.zeros_like(x)), terms)


def update_discriminator(
    state: AdversarialState,
    new: AdversarialState,
    terms: AdversarialTerms,
    config: TokenizerRunConfig,
) -> AdversarialState:
    """`new` with the updated discriminator, unless the step was bad or before `start_step`.

    Args:
      state: before the step.
      new: after the tokenizer's update; its `skipped` has grown by one if the step was bad.
    """
    settings, old = config.adversarial, state.discriminator
    updates, opt_state = discriminator_optimizer(config).update(
        terms.gradients, old.opt_state, old.params
    )
    count = old.updates.astype(jnp.float32)
    rate = 1 - jnp.minimum(settings.lecam_decay, (1 + count) / (10 + count))
    metrics = terms.metrics
    moved = DiscriminatorState(
        params=optax.apply_updates(old.params, updates),
        opt_state=opt_state,
        mean_real=old.mean_real + rate * (metrics['logit_real'] - old.mean_real),
        mean_fake=old.mean_fake + rate * (metrics['logit_fake'] - old.mean_fake),
        updates=old.updates + 1,
    )
    updated = (state.step >= settings.start_step) & (new.skipped == state.skipped)
    kept = jax.tree.map(lambda n, o: jnp.where(updated, n, o), moved, old)
    return new.replace(discriminator=kept)
