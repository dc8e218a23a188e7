"""How well a tokenizer codes images: fidelity, use of its bits, and what each scale adds."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from infinity_jax.config import TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.images import check_writable, from_uint8, psnr, to_uint8
from infinity_jax.scales import BUDGET_OF_EDGE, STRIDE, Grid
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import accumulate, quantize, residual_at
from infinity_jax.tools.evaluation.feature_file import features_distance
from infinity_jax.tools.evaluation.image_metrics import WINDOW, edge_energy, ssim
from infinity_jax.tools.evaluation.tokenizer_checkpoint import TokenizerCheckpoint, open_checkpoint
from infinity_jax.tools.evaluation.tokenizer_images import (
    ImageSet,
    claim_pairs,
    emoji_images,
    folder_images,
    save_pairs,
)
from infinity_jax.tools.evaluation.tokenizer_report import BALANCED, JSON, write_report
from infinity_jax.training.tokenizer.config import released_schedule
from infinity_jax.training.tokenizer.lpips import MIN_EDGE, lpips
from infinity_jax.training.tokenizer.lpips_files import load_lpips
from infinity_jax.weights.model_folder import LoadedModel

# Of a code's 1/√d: a smaller residual counts as near zero, as in FoundationVision/Infinity's
# infinity/models/bsq_vae/multiscale_bsq.py, `residual_norm_per_scale`.
NEAR_ZERO = 0.05
BATCH_PIXELS = 2**18  # of images coded in one call: 64 of 64², one of 512² or larger
STRIP_IMAGES = 8
EMOJI = 'emoji'

Keep = Callable[[int, np.ndarray, np.ndarray], None]  # number of the first, originals, decoded


def evaluate_tokenizer(
    checkpoint: str | os.PathLike,
    *,
    data: str = EMOJI,
    subset: str = '',
    count: int = 256,
    size: int = 0,
    vgg: str = '',
    heads: str = '',
    features: str = '',
    save: str | os.PathLike = '',
    out: str | os.PathLike = '',
) -> dict[str, Any]:
    """Codes images and measures what comes back; prints a table and writes the report's files.

    Args:
      checkpoint: model folder with a tokenizer; or a run folder, its `checkpoints`, or one of them.
      data: 'emoji' for held-out pairs of the embedded set, or a folder of images, which are
        resized to cover the size and cut at the centre.
      subset: of the emoji: starter, demo or all; '': what the tokenizer was trained on.
      count: images; fewer where a folder holds fewer.
      size: pixels of an edge, for a tokenizer that names no schedule of its own; 0: 256.
      vgg, heads: weights of LPIPS, see `lpips_files`; '': not measured.
      features: .npz with `originals` and `reconstructions` (N, D), made by a network of the user's
        choice; their Fréchet distance is the rFID if it is Inception. '': not measured.
      save: folder for the images as they were coded and their reconstructions, PNGs of equal
        names in `gt` and `pred`; '': not kept.
      out: folder for tokenizer.json, tokenizer_strip.png, tokenizer_bits.png; '': `evaluation` in
        the run folder, or beside a model folder.

    Raises:
      UserError: model, images or weights are missing or do not fit, or a folder is unwritable.
    """
    if count < 1:
        raise UserError(f'count is {count}; evaluate 1 image or more')
    if subset and data != EMOJI:
        raise UserError(f"--subset {subset}: is of --data emoji, not of '{data}'; leave it out")
    if bool(vgg) != bool(heads):
        raise UserError(
            f'--vgg is {vgg!r} and --lpips-heads {heads!r}: LPIPS wants both; name both or neither'
        )
    source = open_checkpoint(checkpoint)
    loaded, out = source.loaded, pathlib.Path(out or source.results)
    grids, edge = coding(source, size)
    smallest = MIN_EDGE if vgg else WINDOW
    if edge < smallest:
        raise UserError(f'images of {edge} pixels; SSIM and LPIPS want {smallest} or more')
    if data == EMOJI:
        subset = subset or loaded.configs.extra.get('run', {}).get('data', {}).get('subset', 'all')
        images = emoji_images(subset, count, edge)
    else:
        images = folder_images(data, count, edge)
    distance = features_distance(features) if features else None
    perceptual = load_lpips(vgg, heads) if vgg else None
    check_writable(out / JSON)
    if save:
        claim_pairs(pathlib.Path(save))
    keep = functools.partial(save_pairs, pathlib.Path(save)) if save else None
    sums, strip = measure(loaded, grids, perceptual, images, keep)
    results = {
        'images': images.count,
        'data': data if data == EMOJI else 'folder',
        'subset': subset or None,
        'size': edge,
        'bits': loaded.configs.tokenizer.bits,
        **figures(sums, grids),
        'frechet': dataclasses.asdict(distance) if distance else None,
    }
    write_report(out, results, strip)
    if save:
        print(f'{images.count} originals and reconstructions: {save}/gt, {save}/pred')
    return results


def coding(source: TokenizerCheckpoint, size: int) -> tuple[tuple[Grid, ...], int]:
    """The code grids of a square image and its edge in pixels."""
    loaded = source.loaded
    stride = loaded.configs.tokenizer.stride
    if loaded.configs.schedule is None:
        edge = size or 256
        if stride not in (STRIDE, STRIDE // 2):
            raise UserError(
                f'{source.name}: names no grids, and the released ones are for stride {STRIDE} or '
                f'{STRIDE // 2}, not {stride}; name a run that was trained with grids'
            )
        if edge not in BUDGET_OF_EDGE:
            edges = ', '.join(map(str, sorted(BUDGET_OF_EDGE)))
            raise UserError(f'--size is {edge}; wanted one of {edges}')
        return released_schedule((edge, edge)).code_grids(patchify=stride < STRIDE), edge
    grids = loaded.configs.schedule.code_grids(source.folded)
    height, width = (n * stride for n in grids[-1])
    if height != width or size not in (0, height):
        raise UserError(
            f'{source.name}: codes images of {height} x {width} pixels; wanted squares, and '
            f'--size {size or height} to be theirs'
        )
    return grids, height


def code_batch(
    params: Any, perceptual: Any, pixels: jax.Array, *, config: TokenizerConfig, grids: Any
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Means over one batch, and (K, B, Y, X, 3) uint8, decoded after 1 to K scales."""
    model, target = Autoencoder(config), from_uint8(pixels)
    features = model.apply({'params': params}, target, method=Autoencoder.encode)
    quantized = quantize(features, grids)
    total, near, decoded = jnp.zeros_like(features), [], []
    for grid, code in zip(grids, quantized.codes, strict=True):
        small = jnp.abs(residual_at(features, total, grid)) < NEAR_ZERO * config.bits**-0.5
        near.append(jnp.mean(small.astype(jnp.float32)))
        total = accumulate(total, code)
        decoded.append(model.apply({'params': params}, total, method=Autoencoder.decode))
    means = {
        'psnr_K': jnp.stack([psnr(pixels, target) for pixels in decoded]),
        'ssim': jnp.mean(ssim(decoded[-1], target)),
        'edges': jnp.mean(edge_energy(decoded[-1])),
        'original_edges': jnp.mean(edge_energy(target)),
        'ones_Kd': jnp.stack(
            [jnp.mean(bits.astype(jnp.float32), axis=(0, 1, 2)) for bits in quantized.bits]
        ),
        'near_zero_K': jnp.stack(near),
    }
    if perceptual is not None:
        clamped = jnp.clip(decoded[-1], -1.0, 1.0)
        means['lpips'] = jnp.mean(lpips(perceptual, clamped, target))
    return means, jnp.stack([to_uint8(pixels) for pixels in decoded])


def measure(
    loaded: LoadedModel,
    grids: tuple[Grid, ...],
    perceptual: Any,
    images: ImageSet,
    keep: Keep | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Means over all images, and (n, 1 + K, Y, X, 3): originals beside what scales make.

    One batch is held at a time; `keep` is called with each, uint8 (B, Y, X, 3).
    """
    config = loaded.configs.tokenizer
    run = jax.jit(functools.partial(code_batch, config=config, grids=grids))
    at_once = max(1, BATCH_PIXELS // images.size**2)
    sums: dict[str, np.ndarray] = {}
    strips: list[np.ndarray] = []
    done = 0
    with tqdm(
        total=images.count, desc='coding', unit=' images', dynamic_ncols=True, disable=None
    ) as bar:
        for batch in images.batches(at_once):
            means, decoded = run(loaded.tokenizer_params, perceptual, batch)
            for name, value in means.items():
                sums[name] = sums.get(name, 0) + np.asarray(value, np.float64) * len(batch)
            if len(strips) < STRIP_IMAGES:
                rows = np.concatenate([batch[None], decoded]).swapaxes(0, 1)
                strips += list(rows[: STRIP_IMAGES - len(strips)])
            if keep is not None:
                keep(done, batch, np.asarray(decoded[-1]))
            done += len(batch)
            bar.update(len(batch))
    return {name: value / images.count for name, value in sums.items()}, np.stack(strips)


def figures(sums: dict[str, np.ndarray], grids: tuple[Grid, ...]) -> dict[str, Any]:
    """Means of `measure` as plain numbers: over all, and by scale."""
    return {
        'grids': [list(grid) for grid in grids],
        'psnr': float(sums['psnr_K'][-1]),
        'ssim': float(sums['ssim']),
        'edge_energy': float(sums['edges'] / np.maximum(sums['original_edges'], 1e-12)),
        'lpips': float(sums['lpips']) if 'lpips' in sums else None,
        'scales': [
            scale_figures(grid, sums['ones_Kd'][k], sums['near_zero_K'][k], sums['psnr_K'][k])
            for k, grid in enumerate(grids)
        ],
        'ones': np.round(sums['ones_Kd'], 5).tolist(),
    }


def scale_figures(grid: Grid, ones_d: np.ndarray, near_zero: float, ratio: float) -> dict[str, Any]:
    """One scale's row of the table; pooled over scales, a coarse bit could stay constant unseen."""
    p = np.clip(ones_d, 1e-12, 1 - 1e-12)
    entropy_d = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    return {
        'grid': list(grid),
        'psnr': float(ratio),  # after this and all coarser scales
        'bit_entropy': float(entropy_d.mean()),  # in bits; 1: each bit is set half of the time
        'least_used': float(ones_d.min()),  # share of ones of the bit that is set most rarely
        'most_used': float(ones_d.max()),
        'balanced': float(np.mean((ones_d >= BALANCED[0]) & (ones_d <= BALANCED[1]))),  # bits
        'near_zero': float(near_zero),  # share of residuals below 0.05/√d
    }
