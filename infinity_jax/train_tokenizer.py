"""Trains the bitwise tokenizer: autoencoder and multi-scale quantizer, on pictures alone."""

import dataclasses
import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infinity_jax import loop
from infinity_jax.checkpoint import check_start
from infinity_jax.config import TokenizerConfig, UserError
from infinity_jax.data.buckets import SQUARE
from infinity_jax.generate import to_uint8
from infinity_jax.matcher import contact_sheet
from infinity_jax.model_folder import ModelBundle, load_model, save_model
from infinity_jax.optimizer import (
    TrainState,
    apply_gradients,
    make_optimizer,
    make_schedule,
    new_state,
)
from infinity_jax.pictures import from_uint8, save_png
from infinity_jax.run_folder import recipe
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
from infinity_jax.tokenizer.quantizer import Quantized, quantize

STRIP_PICTURES = 8  # originals above reconstructions in the sample picture


@dataclasses.dataclass(frozen=True)
class TokenizerLosses:
    """Weights of the terms. The released recipe: l1 1, commitment 4·0.25, entropy 4·0.1."""

    l1: float = 1.0
    l2: float = 1.0
    commitment: float = 0.25
    entropy: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerRunConfig(loop.RunConfig):
    """Configuration of `configs/tokenizer.py`."""

    tokenizer: TokenizerConfig
    grids: tuple[tuple[int, ...], ...]  # (h, w) of each scale; the last is picture size / stride
    losses: TokenizerLosses = TokenizerLosses()
    precision: str = 'highest'  # of products in training: 'highest', or 'default' (faster on GPU)


def forward(model: Autoencoder, params: Any, pixels_BYX3: jax.Array, grids: Any):
    """Reconstruction (unclamped) and what the quantizer saw on the way."""
    features = model.apply({'params': params}, pixels_BYX3, method=Autoencoder.encode)
    quantized = quantize(features, grids)
    pixels = model.apply({'params': params}, quantized.total_Bhwd, method=Autoencoder.decode)
    return pixels, quantized


def loss_terms(
    pixels_BYX3: jax.Array, target_BYX3: jax.Array, quantized: Quantized, weights: TokenizerLosses
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum and its unweighted terms."""
    l1, l2 = reconstruction(pixels_BYX3, target_BYX3)
    terms = {
        'l1': l1,
        'l2': l2,
        'commitment': commitment(quantized.normalised),
        'entropy': entropy_penalty(quantized.normalised),
    }
    return sum(getattr(weights, name) * term for name, term in terms.items()), terms


def bit_usage(bits: tuple[jax.Array, ...]) -> jax.Array:
    """(K,) mean over bits of the entropy, in bits, of how often each is 1: 1 is best, 0 is dead."""
    usage = []
    for scale_bits in bits:
        p = jnp.mean(scale_bits.astype(jnp.float32), axis=(0, 1, 2))
        p = jnp.clip(p, 1e-6, 1 - 1e-6)
        usage.append(jnp.mean(-p * jnp.log2(p) - (1 - p) * jnp.log2(1 - p)))
    return jnp.stack(usage)


def train_step(
    state: TrainState, batch: Any, *, model: Autoencoder, config: TokenizerRunConfig
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on a batch of pictures. Pure; jitted in `make_task`."""
    target = from_uint8(batch['pixels_BYX3'])

    def loss_fn(params):
        pixels, quantized = forward(model, params, target, config.grids)
        loss, terms = loss_terms(pixels, target, quantized, config.losses)
        return loss, {**terms, 'psnr': psnr(pixels, target), 'bit_usage': bit_usage(quantized.bits)}

    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    learning_rate = make_schedule(config.optimizer, config.steps)(state.step - state.skipped)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state, update = apply_gradients(state, grads, loss, optimizer, config.optimizer)
    return state, {'loss': loss, **metrics, **update, 'learning_rate': learning_rate}


def evaluation_step(
    params: Any, batch: Any, *, model: Autoencoder, config: TokenizerRunConfig
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Metrics of one held-out batch; and (2, n, Y, X, 3), first pictures and reconstructions."""
    target = from_uint8(batch['pixels_BYX3'])
    pixels, quantized = forward(model, params, target, config.grids)
    loss, terms = loss_terms(pixels, target, quantized, config.losses)
    usage = bit_usage(quantized.bits)
    metrics = {'loss': loss, **terms, 'psnr': psnr(pixels, target), 'bit_usage': usage}
    return metrics, jnp.stack([target[:STRIP_PICTURES], pixels[:STRIP_PICTURES]])


def check(config: TokenizerRunConfig) -> None:
    """Raises `UserError` where schedule, stride and picture size disagree."""
    schedule = ScaleSchedule.free(config.grids)
    wanted = schedule.picture_size(config.tokenizer.stride)
    if wanted != (config.data.picture_size,) * 2:
        raise UserError(
            f'grids end in {config.grids[-1]}, at stride {config.tokenizer.stride} a picture of '
            f'{wanted}, but data.picture_size is {config.data.picture_size}; change one of them'
        )
    if config.data.bucket_names != (SQUARE,):
        raise UserError(f'data.ratios is {config.data.ratios}; a tokenizer is trained on {SQUARE}')
    if config.precision not in ('highest', 'default'):
        raise UserError(f"precision is {config.precision!r}; wanted 'highest' or 'default'")


def make_task(config: TokenizerRunConfig, mesh: Mesh) -> loop.Task:
    """Everything the loop needs, jitted and sharded here and nowhere else."""
    model = Autoencoder(config.tokenizer, precision=jax.lax.Precision(config.precision))
    optimizer = make_optimizer(config.optimizer, config.steps)
    size = config.data.picture_size

    def init(key: jax.Array) -> TrainState:
        params = model.init(key, jnp.zeros((1, size, size, 3)))['params']
        return new_state(params, optimizer)

    boxed = jax.eval_shape(init, jax.random.key(0))
    shapes, shardings = nn.unbox(boxed), shardings_of(boxed, mesh)

    def from_model() -> TrainState:
        params = load_model(config.init_from, parts=('tokenizer',)).tokenizer_params
        check_start(config.init_from, shapes.params, params)
        return jax.jit(lambda p: new_state(p, optimizer), out_shardings=shardings)(params)

    common = {'model': model, 'config': config}
    step = jax.jit(
        functools.partial(train_step, **common),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    evaluate_batch = jax.jit(
        functools.partial(evaluation_step, **common), out_shardings=replicated(mesh)
    )
    held_out = [loop.put_batch(batch, mesh) for batch in loop.held_out_batches(config)]

    def evaluate(state: TrainState) -> dict[str, jax.Array]:
        results = [evaluate_batch(state.ema, batch)[0] for batch in held_out]
        return jax.tree.map(lambda *x: sum(x) / len(x), *results)

    def sample(state: TrainState, path: pathlib.Path) -> None:
        originals, pixels = evaluate_batch(state.ema, held_out[0])[1]
        names = ['original'] * len(originals) + ['reconstruction'] * len(pixels)
        pictures = np.asarray(to_uint8(jnp.concatenate([originals, pixels])))
        if jax.process_index() == 0:
            save_png(path, contact_sheet(pictures, names, columns=len(originals)))

    def export(state: TrainState, folder: pathlib.Path) -> None:
        bundle = ModelBundle(
            tokenizer_config=config.tokenizer,
            tokenizer_params=to_host(state.ema, mesh),
            schedule=ScaleSchedule.free(config.grids),
            extra={'run': recipe(config)},
        )
        if jax.process_index() == 0:
            save_model(folder, bundle)

    return loop.Task(
        init=lambda key: init_sharded(init, mesh, key),
        abstract_state=loop.with_shardings(shapes, shardings),
        from_model=from_model if config.init_from else None,
        batches=loop.make_batches(config, 'train'),
        train_step=in_mesh(mesh, step),
        evaluate=in_mesh(mesh, evaluate),
        sample=in_mesh(mesh, sample),
        export=export,
    )


def train(config: TokenizerRunConfig) -> pathlib.Path:
    """Runs the whole training; returns the folder of the exported tokenizer."""
    check(config)
    mesh = make_mesh(config.mesh)
    return loop.run(config, make_task(config, mesh), mesh)
