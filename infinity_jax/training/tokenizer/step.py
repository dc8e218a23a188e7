"""One step of tokenizer training, from images to an update; pure functions."""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from infinity_jax.data.batch import Batch
from infinity_jax.images import from_uint8, psnr
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import quantize, truncated_total
from infinity_jax.training.accumulate import batch_parts, mean_of_parts
from infinity_jax.training.config import step_key
from infinity_jax.training.optimizer import (
    TrainState,
    apply_gradients,
    make_optimizer,
    make_schedule,
)
from infinity_jax.training.tokenizer.adversarial import (
    AdversarialState,
    AdversarialTerms,
    adversarial_terms,
    update_discriminator,
)
from infinity_jax.training.tokenizer.config import TokenizerLosses, TokenizerRunConfig
from infinity_jax.training.tokenizer.losses import commitment, entropy_penalty, reconstruction
from infinity_jax.training.tokenizer.lpips import lpips
from infinity_jax.training.tokenizer.noise import sample_flips, sample_kept, sample_truncation

STRIP_IMAGES = 8  # originals above reconstructions in the sample image


class Outputs(NamedTuple):
    """Outputs of the tokenizer, with respect to which the losses are differentiated.

    Attributes:
      pixels: reconstruction, not clamped, (B, Y, X, 3).
      truncated: the same from each image's first few scales; None where that term is off.
      normalised: per scale (B, h, w, d), as the quantizer gives it.
    """

    pixels: jax.Array
    truncated: jax.Array | None
    normalised: tuple[jax.Array, ...]


class Noise(NamedTuple):
    """Random choices of training for each image of a batch; None for an option that is off.

    Attributes:
      kept_BK: bool, the scales that an image keeps.
      flips: per scale (B, h, w, d) bool, the bits that change.
      scales_B: int32, the number of first scales of an image for `Outputs.truncated`.
    """

    kept_BK: jax.Array | None
    flips: tuple[jax.Array | None, ...] | None
    scales_B: jax.Array | None


def sample_noise(key: jax.Array, pixels_BYX3: jax.Array, config: TokenizerRunConfig) -> Noise:
    """The noise of a batch of images."""
    batch, height, width, _ = pixels_BYX3.shape
    grids = config.code_grids((height, width))
    scales = len(grids)
    drop_key, flip_key, cut_key = jax.random.split(key, 3)
    return Noise(
        sample_kept(drop_key, config.quantizer, batch, scales),
        sample_flips(flip_key, config.quantizer, batch, grids, config.tokenizer.bits),
        sample_truncation(cut_key, batch, scales) if config.losses.truncated else None,
    )


def forward(
    model: Autoencoder,
    params: Any,
    pixels_BYX3: jax.Array,
    config: TokenizerRunConfig,
    noise: Noise | None = None,
) -> tuple[Outputs, tuple[jax.Array, ...], jax.Array]:
    """Outputs, bits and the last convolution's input for images; evaluation has no noise."""
    _, height, width, _ = pixels_BYX3.shape
    grids = config.code_grids((height, width))
    encoded = model.apply({'params': params}, pixels_BYX3, method=Autoencoder.encode)
    features = cast(jax.Array, encoded)
    if config.freeze_encoder:
        features = jax.lax.stop_gradient(features)
    decode = functools.partial(model.apply, {'params': params}, method=Autoencoder.decode)
    if noise is None:
        quantized = quantize(features, grids)
    else:
        attached = config.quantizer.attach_residual
        quantized = quantize(
            features, grids, kept_BK=noise.kept_BK, flips=noise.flips, attached=attached
        )
    truncated = None
    if noise is not None and noise.scales_B is not None:
        truncated = cast(jax.Array, decode(truncated_total(quantized.codes, noise.scales_B)))
    pixels, sown = decode(quantized.total_Bhwd, mutable='intermediates')
    (last_hidden,) = sown['intermediates']['decoder']['last_hidden']
    return Outputs(pixels, truncated, quantized.normalised), quantized.bits, last_hidden


def loss_terms(
    outputs: Outputs,
    target_BYX3: jax.Array,
    lpips_params: Any,
    weights: TokenizerLosses,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum and its unweighted terms, without the adversarial one.

    Args:
      lpips_params: weights of LPIPS; None: the term is off.
      precision: of the products in LPIPS.
    """
    l1, l2 = reconstruction(outputs.pixels, target_BYX3)
    terms = {
        'l1': l1,
        'l2': l2,
        'commitment': commitment(outputs.normalised),
        'entropy': entropy_penalty(outputs.normalised, weights.inverse_temperature),
    }
    if lpips_params is not None:
        terms['perceptual'] = jnp.mean(lpips(lpips_params, outputs.pixels, target_BYX3, precision))
    if outputs.truncated is not None:
        l1, l2 = reconstruction(outputs.truncated, target_BYX3)
        terms['truncated'] = weights.l1 * l1 + weights.l2 * l2
    return sum(getattr(weights, name) * term for name, term in terms.items()), terms


def bit_usage(bits: tuple[jax.Array, ...]) -> jax.Array:
    """(K,) mean over bits of the entropy, in bits, of how often each is 1: 1 is best, 0 is dead."""
    usage = []
    for scale_bits in bits:
        p = jnp.mean(scale_bits.astype(jnp.float32), axis=(0, 1, 2))
        p = jnp.clip(p, 1e-6, 1 - 1e-6)
        usage.append(jnp.mean(-p * jnp.log2(p) - (1 - p) * jnp.log2(1 - p)))
    return jnp.stack(usage)


def last_layer_gradient(model: Autoencoder, params: Any, last_hidden: jax.Array) -> Any:
    """A function from a gradient of the pixels to the gradient of the decoder's last kernel."""
    last = params['decoder']['conv_out']
    decode = lambda kernel: model.last_layer({**last, 'kernel': kernel}, last_hidden)
    pull = jax.vjp(decode, last['kernel'])[1]
    return lambda pixels_gradient: pull(pixels_gradient)[0]


class Gradients(NamedTuple):
    """Losses and gradients of a batch or a part of it; means over its images.

    Attributes:
      params: gradient of the tokenizer's weights.
      loss: the weighted sum.
      metrics: scalars and (K,) vectors for the log.
      adversarial: terms of the discriminator, None without one; `pixels_gradient` is in `params`.
    """

    params: Any
    loss: jax.Array
    metrics: dict[str, jax.Array]
    adversarial: AdversarialTerms | None


def gradients_of(
    state: TrainState,
    lpips_params: Any,
    rows: tuple[jax.Array, Noise],
    *,
    model: Autoencoder,
    config: TokenizerRunConfig,
) -> Gradients:
    """Gradients of both networks on some images.

    The gradient goes from the losses to the outputs first, and from there, with the adversarial
    one added, through the networks once.

    Args:
      rows: images (B, Y, X, 3) of uint8 and their noise.
    """
    pixels, noise = rows
    target = from_uint8(pixels)

    def generate(params):
        outputs, *others = forward(model, params, target, config, noise)
        return outputs, others

    outputs, pull, (bits, last_hidden) = jax.vjp(generate, state.params, has_aux=True)
    terms_of = jax.value_and_grad(loss_terms, has_aux=True)
    precision = jax.lax.Precision(config.precision)
    (loss, metrics), gradient = terms_of(outputs, target, lpips_params, config.losses, precision)
    metrics |= {'psnr': psnr(outputs.pixels, target), 'bit_usage': bit_usage(bits)}
    adversarial = None
    if config.adversarial.weight:
        last_layer = last_layer_gradient(model, state.params, last_hidden)
        assert isinstance(state, AdversarialState)
        adversarial = adversarial_terms(
            state, outputs.pixels, target, gradient.pixels, last_layer, config
        )
        assert adversarial.pixels_gradient is not None
        gradient = gradient._replace(pixels=gradient.pixels + adversarial.pixels_gradient)
        adversarial = adversarial._replace(pixels_gradient=None)
        loss += adversarial.metrics['adversarial_weight'] * adversarial.metrics['adversarial']
    return Gradients(pull(gradient)[0], loss, metrics, adversarial)


def train_step(
    state: TrainState, lpips_params: Any, batch: Batch, *, model: Autoencoder, config: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of the tokenizer and, if there is one, of the discriminator. Pure.

    With `config.accumulate_steps` above 1 the batch is processed in parts, whose gradients are
    averaged. The entropy penalty then averages its probabilities over a part, not over the batch.

    Args:
      state: an `AdversarialState` where the adversarial term is on.
      lpips_params: weights of LPIPS, or None.
      config: the `TokenizerRunConfig`.
    """
    pixels = batch.pixels_BYX3
    assert pixels is not None
    noise = sample_noise(step_key(config.seed, state.step), pixels, config)
    of_rows = functools.partial(gradients_of, state, lpips_params, model=model, config=config)
    grads, loss, metrics, adversarial = mean_of_parts(
        of_rows, (pixels, noise), config.accumulate_steps
    )
    finite = loss if adversarial is None else loss + adversarial.finite
    learning_rate = make_schedule(config.optimizer, config.steps)(state.step - state.skipped)
    optimizer = make_optimizer(config.optimizer, config.steps)
    new, update = apply_gradients(state, grads, finite, optimizer, config.optimizer)
    if config.freeze_encoder:
        new = with_encoder_of(new, state)
    if adversarial is not None:
        assert isinstance(state, AdversarialState) and isinstance(new, AdversarialState)
        new = update_discriminator(state, new, adversarial, config)
        metrics |= adversarial.metrics
    return new, {'loss': loss, **metrics, **update, 'learning_rate': learning_rate}


def evaluation_step(
    params: Any, lpips_params: Any, batch: Batch, *, model: Autoencoder, config: TokenizerRunConfig
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Metrics of one held-out batch; and (2, n, Y, X, 3), first images and reconstructions."""

    def of_rows(pixels):
        target = from_uint8(pixels)
        outputs, bits, _ = forward(model, params, target, config)
        loss, terms = loss_terms(outputs, target, lpips_params, config.losses)
        metrics = {'loss': loss, **terms, 'psnr': psnr(outputs.pixels, target)}
        return {**metrics, 'bit_usage': bit_usage(bits)}, outputs.pixels

    pixels, count = batch.pixels_BYX3, config.accumulate_steps
    assert pixels is not None
    if count == 1:
        metrics, decoded = of_rows(pixels)
    else:
        metrics, decoded = jax.lax.map(of_rows, batch_parts(pixels, count))
        metrics = jax.tree.map(lambda x: x.mean(0), metrics)
        decoded = decoded.swapaxes(0, 1).reshape(pixels.shape)
    target = from_uint8(pixels[:STRIP_IMAGES])
    return metrics, jnp.stack([target, decoded[:STRIP_IMAGES]])


def with_encoder_of(new: TrainState, old: TrainState) -> TrainState:
    """`new` with the encoder's weights of `old`, which weight decay alone would change."""
    keep = lambda moved, was: {**moved, 'encoder': was['encoder']}
    return new.replace(params=keep(new.params, old.params), ema=keep(new.ema, old.ema))
