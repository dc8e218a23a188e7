"""Trains the bitwise tokenizer: autoencoder and multi-scale quantizer, on pictures alone."""

import functools
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infinity_jax import flops
from infinity_jax.drawing.draw_steps import to_uint8
from infinity_jax.evaluation.matcher import contact_sheet
from infinity_jax.pictures import from_uint8, save_png
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import (
    in_mesh,
    init_sharded,
    make_mesh,
    replicated,
    shardings_of,
    to_host,
)
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.losses import commitment, entropy_penalty, psnr, reconstruction
from infinity_jax.tokenizer.perceptual import lpips
from infinity_jax.tokenizer.quantizer import quantize, truncated_total
from infinity_jax.tokenizer.quantizer_noise import draw_flips, draw_kept, draw_truncation
from infinity_jax.training import loop
from infinity_jax.training.optimizer import (
    TrainState,
    apply_gradients,
    make_optimizer,
    make_schedule,
    new_state,
)
from infinity_jax.training.run_batches import held_out_batches, make_batches, put_batch
from infinity_jax.training.run_config import init_key, step_key
from infinity_jax.training.run_folder import recipe
from infinity_jax.training.train_adversarial import add_discriminator, attack, update_discriminator
from infinity_jax.training.train_tokenizer_config import TokenizerLosses, TokenizerRunConfig, check
from infinity_jax.training.train_tokenizer_start import starting_params
from infinity_jax.weights.model_folder import ModelBundle, save_model
from infinity_jax.weights.perceptual_files import perceptual_or_none

STRIP_PICTURES = 8  # originals above reconstructions in the sample picture


class Outputs(NamedTuple):
    """What the losses read, and what gradients are taken of.

    Attributes:
      pixels: reconstruction, not clamped, (B, Y, X, 3).
      truncated: the same from each picture's first few scales; None where that term is off.
      normalised: per scale (B, h, w, d), as the quantizer gives it.
    """

    pixels: jax.Array
    truncated: jax.Array | None
    normalised: tuple[jax.Array, ...]


def forward(
    model: Autoencoder,
    params: Any,
    pixels_BYX3: jax.Array,
    config: TokenizerRunConfig,
    key: jax.Array | None = None,
) -> tuple[Outputs, tuple[jax.Array, ...], jax.Array]:
    """Pictures to outputs, bits and the last convolution's input; with a key, noise is drawn."""
    grids = config.code_grids(pixels_BYX3.shape[1:3])
    batch, scales = pixels_BYX3.shape[0], len(grids)
    features = model.apply({'params': params}, pixels_BYX3, method=Autoencoder.encode)
    if config.freeze_encoder:
        features = jax.lax.stop_gradient(features)
    decode = functools.partial(model.apply, {'params': params}, method=Autoencoder.decode)
    noise = {}
    if key is not None:
        drop_key, flip_key, cut_key = jax.random.split(key, 3)
        noise = {
            'kept_BK': draw_kept(drop_key, config.quantizer, batch, scales),
            'flips': draw_flips(flip_key, config.quantizer, batch, grids, config.tokenizer.bits),
            'attached': config.quantizer.attach_residual,
        }
    quantized = quantize(features, grids, **noise)
    truncated = None
    if key is not None and config.losses.truncated:
        scales_B = draw_truncation(cut_key, batch, scales)
        truncated = decode(truncated_total(quantized.codes, scales_B))
    pixels, sown = decode(quantized.total_Bhwd, mutable='intermediates')
    (last_hidden,) = sown['intermediates']['decoder']['last_hidden']
    return Outputs(pixels, truncated, quantized.normalised), quantized.bits, last_hidden


def loss_terms(
    outputs: Outputs, target_BYX3: jax.Array, perceptual: Any, weights: TokenizerLosses
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum and its unweighted terms, without the adversarial one.

    Args:
      perceptual: weights of LPIPS; None: the term is off.
    """
    l1, l2 = reconstruction(outputs.pixels, target_BYX3)
    terms = {
        'l1': l1,
        'l2': l2,
        'commitment': commitment(outputs.normalised),
        'entropy': entropy_penalty(outputs.normalised, weights.inverse_temperature),
    }
    if perceptual is not None:
        terms['perceptual'] = jnp.mean(lpips(perceptual, outputs.pixels, target_BYX3))
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
    """A function: gradient with respect to the pixels -> the one of the decoder's last kernel."""
    last = params['decoder']['conv_out']
    decode = lambda kernel: model.last_layer({**last, 'kernel': kernel}, last_hidden)
    pull = jax.vjp(decode, last['kernel'])[1]
    return lambda pixels_gradient: pull(pixels_gradient)[0]


def train_step(
    state: TrainState, perceptual: Any, batch: Any, *, model: Autoencoder, config: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of the tokenizer and, if there is one, of the discriminator. Pure.

    The gradient goes from the losses to the outputs first, and from there, with the adversarial
    one added, through the networks once.

    Args:
      state: an `AdversarialState` where the adversarial term is on.
      perceptual: weights of LPIPS, or None.
      config: the `TokenizerRunConfig`.
    """
    target = from_uint8(batch['pixels_BYX3'])
    key = step_key(config.seed, state.step)

    def generate(params):
        outputs, *others = forward(model, params, target, config, key)
        return outputs, others

    outputs, pull, (bits, last_hidden) = jax.vjp(generate, state.params, has_aux=True)
    terms_of = jax.value_and_grad(loss_terms, has_aux=True)
    (loss, metrics), gradient = terms_of(outputs, target, perceptual, config.losses)
    metrics |= {'psnr': psnr(outputs.pixels, target), 'bit_usage': bit_usage(bits)}
    finite, attacked = loss, None
    if config.adversarial.weight:
        last_layer = last_layer_gradient(model, state.params, last_hidden)
        attacked = attack(state, outputs.pixels, target, gradient.pixels, last_layer, config)
        gradient = gradient._replace(pixels=gradient.pixels + attacked.pixels_gradient)
        finite += attacked.finite
        loss += attacked.metrics['adversarial_weight'] * attacked.metrics['adversarial']
        metrics |= attacked.metrics
    (grads,) = pull(gradient)
    learning_rate = make_schedule(config.optimizer, config.steps)(state.step - state.skipped)
    optimizer = make_optimizer(config.optimizer, config.steps)
    new, update = apply_gradients(state, grads, finite, optimizer, config.optimizer)
    if config.freeze_encoder:
        new = with_encoder_of(new, state)
    if attacked is not None:
        new = update_discriminator(state, new, attacked, config)
    return new, {'loss': loss, **metrics, **update, 'learning_rate': learning_rate}


def evaluation_step(
    params: Any, perceptual: Any, batch: Any, *, model: Autoencoder, config: TokenizerRunConfig
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Metrics of one held-out batch; and (2, n, Y, X, 3), first pictures and reconstructions."""
    target = from_uint8(batch['pixels_BYX3'])
    outputs, bits, _ = forward(model, params, target, config)
    loss, terms = loss_terms(outputs, target, perceptual, config.losses)
    metrics = {'loss': loss, **terms, 'psnr': psnr(outputs.pixels, target)}
    metrics['bit_usage'] = bit_usage(bits)
    return metrics, jnp.stack([target[:STRIP_PICTURES], outputs.pixels[:STRIP_PICTURES]])


def with_encoder_of(new: TrainState, old: TrainState) -> TrainState:
    """`new` with the encoder's weights of `old`, which weight decay alone would change."""
    keep = lambda moved, was: {**moved, 'encoder': was['encoder']}
    return new.replace(params=keep(new.params, old.params), ema=keep(new.ema, old.ema))


def make_model(config: TokenizerRunConfig) -> Autoencoder:
    """The network that the configuration describes."""
    return Autoencoder(
        config.tokenizer, precision=jax.lax.Precision(config.precision), remat=config.remat
    )


def init_state(key: jax.Array, model: Autoencoder, config: TokenizerRunConfig) -> TrainState:
    """The (boxed) state before the first step of a run that starts from random weights."""
    size = config.data.picture_size
    params = model.init(key, jnp.zeros((1, size, size, 3)))['params']
    state = new_state(params, make_optimizer(config.optimizer, config.steps))
    if not config.adversarial.weight:
        return state
    return add_discriminator(state, jax.random.fold_in(key, 1), (size, size), config)


def jit_step(model: Autoencoder, config: TokenizerRunConfig, shardings: Any, mesh: Mesh) -> Any:
    """`train_step` as (state, perceptual, batch) -> (state, metrics), the state donated."""
    return jax.jit(
        functools.partial(train_step, model=model, config=config),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_task(config: TokenizerRunConfig, mesh: Mesh) -> loop.Task:
    """Everything the loop needs, jitted and sharded here and nowhere else."""
    model = make_model(config)

    def init(key: jax.Array) -> TrainState:
        return init_state(key, model, config)

    boxed = jax.eval_shape(init, jax.random.key(0))
    shapes, shardings = nn.unbox(boxed), shardings_of(boxed, mesh)

    def from_model() -> TrainState:
        fresh = init_sharded(init, mesh, init_key(config.seed))
        params = starting_params(config.init_from, fresh.params)
        start = lambda state, p: state.replace(params=p, ema=jax.tree.map(jnp.copy, p))
        return jax.jit(start, out_shardings=shardings)(fresh, params)

    perceptual = perceptual_or_none(
        config.losses.perceptual, config.vgg_weights, config.lpips_heads
    )
    perceptual = jax.device_put(perceptual, replicated(mesh))
    step = jit_step(model, config, shardings, mesh)
    evaluate_batch = jax.jit(
        functools.partial(evaluation_step, model=model, config=config),
        out_shardings=replicated(mesh),
    )
    held_out = [put_batch(batch, mesh) for batch in held_out_batches(config)]

    def evaluate(state: TrainState) -> dict[str, jax.Array]:
        results = [evaluate_batch(state.ema, perceptual, batch)[0] for batch in held_out]
        return jax.tree.map(lambda *x: sum(x) / len(x), *results)

    def sample(state: TrainState, path: pathlib.Path) -> None:
        originals, pixels = evaluate_batch(state.ema, perceptual, held_out[0])[1]
        names = ['original'] * len(originals) + ['reconstruction'] * len(pixels)
        pictures = np.asarray(to_uint8(jnp.concatenate([originals, pixels])))
        if jax.process_index() == 0:
            save_png(path, contact_sheet(pictures, names, columns=len(originals)))

    def export(state: TrainState, folder: pathlib.Path) -> None:
        bundle = ModelBundle(
            tokenizer_config=config.tokenizer,
            tokenizer_params=to_host(state.ema, mesh),
            schedule=ScaleSchedule.free(config.grids) if config.grids else None,
            extra={'run': recipe(config)},
        )
        if jax.process_index() == 0:
            save_model(folder, bundle)

    def step_flops(batch: Any) -> float:
        height, width = batch['pixels_BYX3'].shape[1:3]
        return flops.tokenizer_training_step(
            config.tokenizer,
            height,
            width,
            config.batch_size,
            frozen_encoder=config.freeze_encoder,
        )

    return loop.Task(
        init=lambda key: init_sharded(init, mesh, key),
        abstract_state=loop.with_shardings(shapes, shardings),
        from_model=from_model if config.init_from else None,
        batches=make_batches(config, 'train'),
        train_step=in_mesh(mesh, lambda state, batch: step(state, perceptual, batch)),
        step_flops=step_flops,
        evaluate=in_mesh(mesh, evaluate),
        sample=in_mesh(mesh, sample),
        export=export,
    )


def train(config: TokenizerRunConfig) -> pathlib.Path:
    """Runs the whole training; returns the folder of the exported tokenizer."""
    check(config)
    mesh = make_mesh(config.mesh)
    return loop.run(config, make_task(config, mesh), mesh)
