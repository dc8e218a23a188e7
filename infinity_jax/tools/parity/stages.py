"""The stages that `check` compares, each with the reference's own inputs.

Reference layouts are PyTorch's: images and features (B, C, H, W), bits (B, 1, h, w, d).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import required
from infinity_jax.errors import UserError
from infinity_jax.images import to_uint8
from infinity_jax.inference.generate import generate_bits
from infinity_jax.inference.sampling import SamplingConfig, keep_likely, sample_bits
from infinity_jax.inference.scale_steps import GenerationInputs
from infinity_jax.scales import RATIOS, ScaleSchedule, nearest_ratio
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import (
    accumulate,
    codes_from_bits,
    depth_to_space,
    normalised_residual,
    quantize,
    total_from_bits,
)
from infinity_jax.tokenizer.resize import area
from infinity_jax.tools.parity.reference import Reference, Row, bit_row, relative_error
from infinity_jax.training.transformer.loss import bit_loss, token_losses
from infinity_jax.training.transformer.self_correction import correct
from infinity_jax.transformer.model import Trace, Transformer
from infinity_jax.transformer.rope import rope_table


def model_rows(ref: Reference) -> Iterator[Row]:
    """All stages, from the encoder to the generated image."""
    yield from tokenizer_rows(ref)
    yield from self_correction_rows(ref)
    yield from forward_rows(ref)
    yield from generation_rows(ref, 'generation', 'gen', ref.meta, None)
    if 'negative_case' in ref.meta and 'neg_text_features' in ref.arrays:
        case = ref.meta['negative_case']
        yield from generation_rows(ref, 'negative prompt', 'neg', case, 'neg_text')
    else:
        yield Row('negative prompt', skipped='no negative_case')


def _stage(ref: Reference, stage: str, name: str, compute: Callable[[], Any]) -> Row:
    """The row of an array, or a note that the folder does not have it."""
    if name not in ref.arrays:
        return Row(stage, skipped=f'no {name}')
    return Row(stage, relative_error(compute(), ref.arrays[name]))


def _on_code_grid(tokens_Bhwd: np.ndarray, patchify: bool) -> np.ndarray:
    """A scale's values by token as values by code."""
    return np.asarray(depth_to_space(jnp.asarray(tokens_Bhwd))) if patchify else tokens_Bhwd


def _residuals(features_Bhwd: Any, grids, accumulated: Sequence[np.ndarray]) -> list[jax.Array]:
    """The normalised residual of each scale, given the bits of the coarser scales."""

    def normalised(features, accumulated):
        total, residuals = jnp.zeros_like(features), []
        for grid, bits in zip(grids, accumulated, strict=True):
            residuals.append(normalised_residual(features, total, grid))
            total = accumulate(total, codes_from_bits(bits))
        return residuals

    return jax.jit(normalised)(features_Bhwd, tuple(accumulated))


def tokenizer_rows(ref: Reference) -> Iterator[Row]:
    """Encoder, bits, their sum, decoder, and the area-resized inputs of the tokenizer itself."""
    autoencoder = Autoencoder(required(ref.loaded.configs.tokenizer, 'tokenizer'))
    variables = {'params': ref.loaded.tokenizer_params}
    features = ref.features('enc_features')
    encoded = jax.jit(lambda v, x: autoencoder.apply(v, x, method='encode'))(
        variables, ref.features('image')
    )
    yield Row('encoder features', relative_error(encoded, features))

    bits = ref.scales('bits')
    if bits is None:
        raise UserError('arrays.npz lacks bits_00, which the checks start from; copy it again')
    grids = ref.code_grids
    ours = jax.jit(lambda x: quantize(x, grids))(features)
    forced = _residuals(features, grids, bits)
    # After a scale that differs, later residuals must differ too: continue from the reference's.
    agrees = [True]
    for mine, theirs in zip(ours.bits, bits, strict=True):
        agrees.append(agrees[-1] and np.array_equal(mine, theirs))
    residuals = [
        own if same else other
        for own, other, same in zip(ours.normalised, forced, agrees[:-1], strict=True)
    ]
    yield bit_row('tokenizer bits', [np.asarray(z) > 0 for z in residuals], bits, residuals)

    total = total_from_bits(tuple(jnp.asarray(b) for b in bits))
    if 'quantized' in ref.arrays:
        yield Row('quantized sum', relative_error(total, ref.features('quantized')))
        total = jnp.asarray(ref.features('quantized'))
    else:
        yield Row('quantized sum', skipped='no quantized')
    yield reconstruction_row(ref, total)

    errors, total = [], jnp.zeros_like(features)
    for scale, grid in enumerate(grids[1:]):
        total = accumulate(total, codes_from_bits(jnp.asarray(bits[scale])))
        name = f'var_input_{scale:02}'
        if name in ref.arrays:
            errors.append(relative_error(area(total, grid), ref.features(name)))
    if errors:
        yield Row(f'area-resized inputs ({len(errors)} scales)', max(errors))
    if len(errors) < len(grids) - 1:
        yield Row('area-resized inputs', skipped=f'no var_input_{len(errors):02} and later')


def reconstruction_row(ref: Reference, total_Bhwd: jax.Array) -> Row:
    """The decoder, clamped as the reference is.

    The outputs of a decoder with random weights are far beyond ±1. Its rounding is then large
    relative to the clamped range, and the reference itself may be near the limit. An error above
    the limit passes if float64 convolutions agree with both: with ours before clamping, and with
    the reference after it.
    """
    theirs = ref.features('reconstruction')

    def decode(total, dtype):
        config = required(ref.loaded.configs.tokenizer, 'tokenizer')
        autoencoder = Autoencoder(config, dtype=dtype)
        variables = {'params': ref.loaded.tokenizer_params}
        pixels = jax.jit(lambda v, x: autoencoder.apply(v, x, method='decode'))(variables, total)
        return ref.thin_image(np.asarray(pixels))

    ours = decode(total_Bhwd, jnp.float32)
    error = relative_error(np.clip(ours, -1, 1), theirs)
    row = Row('reconstruction', error)
    if error <= row.limit:
        return row
    total = np.asarray(total_Bhwd)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend='cpu')[0]):
        exact = decode(total, jnp.float64)
    errors = relative_error(ours, exact), relative_error(np.clip(exact, -1, 1), theirs)
    return dataclasses.replace(row, exact=errors)


def self_correction_rows(ref: Reference) -> Iterator[Row]:
    """Inputs and targets, given the reference's flips on top of its own bits."""
    flips = ref.scales('bsc_flip')
    if flips is None or 'bsc_targets' not in ref.arrays:
        yield Row('self-correction', skipped='no bsc_flip_00 or bsc_targets')
        return
    patchify = ref.loaded.configs.spatial_patchify
    features = ref.features('enc_features')
    targets_BLd = ref.arrays['bsc_targets'].astype(bool)
    targets = []
    for (start, end), (h, w) in zip(ref.schedule.spans, ref.schedule.grids, strict=True):
        tokens = targets_BLd[:, start:end].reshape(len(features), h, w, -1)
        targets.append(_on_code_grid(tokens, patchify))
    corrupted = [bits ^ flip for bits, flip in zip(targets, flips, strict=False)]
    corrupted += targets[len(flips) :]
    inputs, ours_BLd = jax.jit(
        lambda x, kept: correct(x, ref.schedule, lambda scale, _: kept[scale], patchify=patchify)
    )(features, tuple(corrupted))
    yield Row('self-correction inputs', relative_error(inputs, ref.arrays['bsc_inputs']))
    ours = []
    for (start, end), bits in zip(ref.schedule.spans, targets, strict=True):
        h, w = bits.shape[1] // (1 + patchify), bits.shape[2] // (1 + patchify)
        tokens = np.asarray(ours_BLd[:, start:end]).reshape(len(features), h, w, -1)
        ours.append(_on_code_grid(tokens, patchify))
    margins = _residuals(features, ref.code_grids, corrupted)
    yield bit_row('self-correction targets', ours, targets, margins)


def forward_rows(ref: Reference) -> Iterator[Row]:
    """Text, positions, blocks, logits and losses of the training forward."""
    config = required(ref.loaded.configs.transformer, 'transformer')
    schedule, arrays = ref.schedule, ref.arrays
    text = ref.text('text', int(arrays['text_lens'].max()))
    model = Transformer(config)
    trace: Trace = jax.jit(lambda v, text, x: model.apply(v, *text, x, schedule, method='trace'))(
        {'params': ref.loaded.transformer_params}, text, arrays['bsc_inputs']
    )
    yield _stage(ref, 'text pooled', 'fwd_text_pooled', lambda: trace.pooled_BD)
    memory = [
        m[:n] for m, n in zip(np.asarray(trace.context_BTD), arrays['text_lens'], strict=True)
    ]
    yield _stage(ref, 'text projected', 'fwd_text_projected', lambda: np.concatenate(memory))
    yield _rope_row(ref)
    yield _stage(
        ref, 'first block', 'fwd_block_00', lambda: ref.thin_tokens(np.asarray(trace.blocks[0]))
    )
    yield _stage(
        ref, 'last block', 'fwd_block_last', lambda: ref.thin_tokens(np.asarray(trace.blocks[-1]))
    )
    logits = np.asarray(trace.logits)
    flat = logits.reshape(*logits.shape[:2], -1)
    yield _stage(ref, 'logits', 'fwd_logits', lambda: ref.thin_tokens(flat))
    # The reference's own logits, unless the folder has only some of them.
    if arrays['fwd_logits'].shape == flat.shape:
        logits = arrays['fwd_logits'].reshape(logits.shape)
    targets = jnp.asarray(arrays['bsc_targets'])
    yield _stage(
        ref,
        'loss of each token',
        'loss_per_position',
        lambda: token_losses(jnp.asarray(logits), targets),
    )
    for name, reweight in (('loss_plain', False), ('loss_reweighted', True)):
        loss = functools.partial(bit_loss, jnp.asarray(logits), targets, schedule)
        yield _stage(
            ref,
            name.replace('_', ', '),
            name,
            functools.partial(_total, loss, reweight),
        )


def _total(loss: Callable[..., tuple[jax.Array, Any]], reweight: bool) -> jax.Array:
    return loss(reweight=reweight)[0]


def _rope_row(ref: Reference) -> Row:
    """Positions on the full grid of the ratio, for as many tokens as the reference has."""
    if 'rope_cos_sin' not in ref.arrays:
        return Row('rotary positions', skipped='no rope_cos_sin')
    theirs = ref.arrays['rope_cos_sin']
    full = RATIOS[nearest_ratio(ref.meta['h_div_w'])]
    whole = ScaleSchedule(full, full[-1]) if full[-1] == ref.schedule.full_grid else ref.schedule
    ours = rope_table(whole, required(ref.loaded.configs.transformer, 'transformer').head_dim)
    tokens = min(ours.shape[1], theirs.shape[1])
    return Row('rotary positions', relative_error(ours[:, :tokens], theirs[:, :tokens]))


def generation_rows(
    ref: Reference, stage: str, prefix: str, settings: dict[str, Any], negative_name: str | None
) -> Iterator[Row]:
    """Cached generation on the reference's bits: logits, greedy bits and the image."""
    bits = ref.scales(f'{prefix}_bits')
    if bits is None:
        yield Row(stage, skipped=f'no {prefix}_bits_00')
        return
    config, schedule = required(ref.loaded.configs.transformer, 'transformer'), ref.schedule
    lengths = [ref.arrays['text_lens'].max()]
    if negative_name:
        lengths.append(ref.arrays[f'{negative_name}_lens'].max())
    text = ref.text('text', int(max(lengths)))
    negative = ref.text(negative_name, int(max(lengths))) if negative_name else None
    sampling = SamplingConfig(
        guidance=tuple(map(float, settings['cfg'])),
        temperature=tuple(map(float, settings['tau'])),
        guidance_layer=settings['cfg_insertion_layer'][0],
        top_k=0,  # greedy bits are taken below, from unfiltered logits
        top_p=1.0,
    )
    model = Transformer(config)
    keys = jax.random.split(jax.random.key(0), len(bits[0]))
    static = sampling.static(schedule)

    def generate(variables, inputs, forced):
        return generate_bits(model, variables, inputs, static, forced_bits=forced, keep_logits=True)

    generated = jax.jit(generate)(
        {'params': ref.loaded.transformer_params},
        GenerationInputs(keys, text, sampling.traced(schedule), negative),
        tuple(jnp.asarray(b) for b in bits),
    )
    errors: list[float] = []
    greedy: list[np.ndarray] = []
    margins: list[np.ndarray] = []
    for scale, (logits, (h, w)) in enumerate(zip(generated.logits, schedule.grids, strict=True)):
        name = f'{prefix}_logits_{scale:02}'
        if name in ref.arrays:
            pairs = np.asarray(logits).reshape(len(keys), -1, 2)
            errors.append(relative_error(pairs, ref.arrays[name]))
        chosen = sample_bits(keys, keep_likely(logits, settings.get('top_k', 1), 1.0))
        for out, values in ((greedy, chosen), (margins, logits[..., 1] - logits[..., 0])):
            values = np.asarray(values).reshape(len(keys), h, w, -1)
            out.append(_on_code_grid(values, config.spatial_patchify))
    if errors:
        yield Row(f'{stage}: logits ({len(errors)} scales)', max(errors))
    if len(errors) < len(schedule):
        yield Row(f'{stage}: logits', skipped=f'no {prefix}_logits_{len(errors):02} and later')
    yield bit_row(f'{stage}: bits', greedy, bits, margins)

    name = f'{prefix}_image_bgr_uint8'
    if name not in ref.arrays:
        yield Row(f'{stage}: image', skipped=f'no {name}')
        return
    autoencoder = Autoencoder(required(ref.loaded.configs.tokenizer, 'tokenizer'))
    decode = jax.jit(lambda v, x: autoencoder.apply(v, x, method='decode'))
    decoded = decode({'params': ref.loaded.tokenizer_params}, generated.total_Bhwd)
    pixels = to_uint8(decoded)
    image_bgr = ref.thin_image(np.asarray(pixels))[..., ::-1].astype(np.int64)
    difference = np.abs(image_bgr - ref.arrays[name].astype(np.int64)).max()
    yield Row(f'{stage}: image', grey_levels=int(difference))
