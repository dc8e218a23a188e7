"""Quality of a tokenizer: fidelity of reconstructions, use of its bits, and gain of each scale."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from infinity_jax.config import TokenizerConfig, required
from infinity_jax.errors import UserError
from infinity_jax.images import (
    check_writable,
    claim_pairs,
    from_uint8,
    psnr,
    save_pairs,
    to_uint8,
)
from infinity_jax.scales import BUDGET_OF_EDGE, STRIDE, Grid
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import accumulate, quantize, residual_at
from infinity_jax.tools.evaluation.feature_file import features_distance
from infinity_jax.tools.evaluation.image_metrics import WINDOW, edge_energy, ssim
from infinity_jax.tools.evaluation.tokenizer_checkpoint import TokenizerCheckpoint, open_checkpoint
from infinity_jax.tools.evaluation.tokenizer_images import ImageSet, emoji_images, folder_images
from infinity_jax.tools.evaluation.tokenizer_report import BALANCED, JSON, write_report
from infinity_jax.training.tokenizer.config import released_schedule
from infinity_jax.training.tokenizer.lpips import MIN_EDGE, lpips
from infinity_jax.training.tokenizer.lpips_files import load_lpips
from infinity_jax.weights.model_folder import LoadedModel

# A residual below 0.05/√d, where codes are ±1/√d, counts as near zero, as in FoundationVision/
# Infinity, infinity/models/bsq_vae/multiscale_bsq.py, `residual_norm_per_scale`.
NEAR_ZERO = 0.05
BATCH_PIXELS = 2**18  # per call: 64 images of 64², 1 of 512² or larger
STRIP_IMAGES = 8
EMOJI = 'emoji'

SavePairs = Callable[[int, np.ndarray, np.ndarray], None]  # (first number, originals, decoded)


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
    """Encodes and decodes images, compares them, prints a table and writes a report.

    Args:
      checkpoint: model folder with a tokenizer; or a run folder, its `checkpoints`, or one of them.
      data: 'emoji' for held-out pairs of the embedded set, or a folder of images, which are
        resized to cover the size and cut at the centre.
      subset: of the emoji: starter, demo, unseen or all; '': those of the tokenizer's training.
      count: images; fewer if the folder has fewer.
      size: edge in pixels, for a tokenizer that names no schedule of its own; 0: 256.
      vgg: weights of VGG-16 for LPIPS, see `lpips_files`; '': not measured.
      heads: weights of the LPIPS heads; together with `vgg`.
      features: .npz with `originals` and `reconstructions` (N, D), made by a network of the user's
        choice; their Fréchet distance is the rFID if it is Inception. '': not measured.
      save: folder for originals and reconstructions, PNGs of equal names in `gt` and `pred`; '':
        not written.
      out: folder for tokenizer.json, tokenizer_strip.png, tokenizer_bits.png; '': `evaluation` in
        the run folder, or next to a model folder.

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
        subset = subset or loaded.configs.training_data.get('subset', 'all')
        images = emoji_images(subset, count, edge)
    else:
        images = folder_images(data, count, edge)
    distance = features_distance(features) if features else None
    lpips_params = load_lpips(vgg, heads) if vgg else None
    check_writable(out / JSON)
    if save:
        claim_pairs(pathlib.Path(save))
    saving = functools.partial(save_pairs, pathlib.Path(save)) if save else None
    means, strip = measure(loaded, grids, lpips_params, images, saving)
    results = {
        'images': images.count,
        'data': data if data == EMOJI else 'folder',
        'subset': subset or None,
        'size': edge,
        'bits': required(loaded.configs.tokenizer, 'tokenizer').bits,
        **figures(means, grids),
        'frechet': dataclasses.asdict(distance) if distance else None,
    }
    write_report(out, results, strip)
    if save:
        print(f'{images.count} originals and reconstructions: {save}/gt, {save}/pred')
    return results


def coding(source: TokenizerCheckpoint, size: int) -> tuple[tuple[Grid, ...], int]:
    """The code grids of a square image and its edge in pixels."""
    loaded = source.loaded
    stride = required(loaded.configs.tokenizer, 'tokenizer').stride
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
            f'{source.name}: encodes images of {height} x {width} pixels; wanted squares, and '
            f'--size {size or height} to be theirs'
        )
    return grids, height


class Means(NamedTuple):
    """Means over images; after K scales unless stated otherwise.

    Attributes:
      psnr_K: decibels, of the reconstruction after 1 to K scales.
      ssim: structural similarity.
      edges: edge energy of the reconstructions.
      original_edges: edge energy of the originals.
      ones_Kd: share of ones of each bit of each scale.
      near_zero_K: share of residuals near zero, see `NEAR_ZERO`.
      lpips: None without its weights.
    """

    psnr_K: jax.Array | np.ndarray
    ssim: jax.Array | np.ndarray
    edges: jax.Array | np.ndarray
    original_edges: jax.Array | np.ndarray
    ones_Kd: jax.Array | np.ndarray
    near_zero_K: jax.Array | np.ndarray
    lpips: jax.Array | np.ndarray | None = None


def evaluate_batch(
    params: Any, lpips_params: Any, pixels: jax.Array, *, config: TokenizerConfig, grids: Any
) -> tuple[Means, jax.Array]:
    """Means over a batch, and its reconstructions.

    Args:
      params: of the tokenizer.
      lpips_params: weights of LPIPS, or None.
      pixels: uint8 (B, Y, X, 3).
      config: of the tokenizer.
      grids: of the codes.

    Returns:
      (means, uint8 (K, B, Y, X, 3) decoded after 1 to K scales).
    """
    model, target = Autoencoder(config), from_uint8(pixels)
    encoded = model.apply({'params': params}, target, method=Autoencoder.encode)
    features = cast(jax.Array, encoded)
    quantized = quantize(features, grids)
    total, near, decoded = jnp.zeros_like(features), [], []
    for grid, code in zip(grids, quantized.codes, strict=True):
        small = jnp.abs(residual_at(features, total, grid)) < NEAR_ZERO * config.bits**-0.5
        near.append(jnp.mean(small.astype(jnp.float32)))
        total = accumulate(total, code)
        pixels_BYX3 = model.apply({'params': params}, total, method=Autoencoder.decode)
        decoded.append(cast(jax.Array, pixels_BYX3))
    means = Means(
        psnr_K=jnp.stack([psnr(pixels, target) for pixels in decoded]),
        ssim=jnp.mean(ssim(decoded[-1], target)),
        edges=jnp.mean(edge_energy(decoded[-1])),
        original_edges=jnp.mean(edge_energy(target)),
        ones_Kd=jnp.stack(
            [jnp.mean(bits.astype(jnp.float32), axis=(0, 1, 2)) for bits in quantized.bits]
        ),
        near_zero_K=jnp.stack(near),
    )
    if lpips_params is not None:
        clamped = jnp.clip(decoded[-1], -1.0, 1.0)
        means = means._replace(lpips=jnp.mean(lpips(lpips_params, clamped, target)))
    return means, jnp.stack([to_uint8(pixels) for pixels in decoded])


def measure(
    loaded: LoadedModel,
    grids: tuple[Grid, ...],
    lpips_params: Any,
    images: ImageSet,
    save: SavePairs | None = None,
) -> tuple[Means, np.ndarray]:
    """Evaluates all images, with a batch at a time in memory.

    Args:
      loaded: the tokenizer.
      grids: of the codes.
      lpips_params: weights of LPIPS, or None.
      images: the originals.
      save: called with each batch, uint8 (B, Y, X, 3).

    Returns:
      (means over all images, uint8 (n, 1 + K, Y, X, 3) of the first n originals, each followed by
      its reconstructions after 1 to K scales).
    """
    config = required(loaded.configs.tokenizer, 'tokenizer')
    run = jax.jit(functools.partial(evaluate_batch, config=config, grids=grids))
    at_once = max(1, BATCH_PIXELS // images.size**2)
    sums: Means | None = None
    strips: list[np.ndarray] = []
    done = 0
    with tqdm(
        total=images.count, desc='coding', unit=' images', dynamic_ncols=True, disable=None
    ) as bar:
        for batch in images.batches(at_once):
            means, decoded = run(loaded.tokenizer_params, lpips_params, batch)
            weighted = jax.tree.map(lambda x, n=len(batch): np.asarray(x, np.float64) * n, means)
            sums = weighted if sums is None else jax.tree.map(np.add, sums, weighted)
            if len(strips) < STRIP_IMAGES:
                rows = np.concatenate([batch[None], decoded]).swapaxes(0, 1)
                strips += list(rows[: STRIP_IMAGES - len(strips)])
            if save is not None:
                save(done, batch, np.asarray(decoded[-1]))
            done += len(batch)
            bar.update(len(batch))
    return jax.tree.map(lambda value: value / images.count, sums), np.stack(strips)


def figures(means: Means, grids: tuple[Grid, ...]) -> dict[str, Any]:
    """Means of `measure` as plain numbers: over all scales, and by scale."""
    return {
        'grids': [list(grid) for grid in grids],
        'psnr': float(means.psnr_K[-1]),
        'ssim': float(means.ssim),
        'edge_energy': float(means.edges / np.maximum(means.original_edges, 1e-12)),
        'lpips': None if means.lpips is None else float(means.lpips),
        'scales': [
            scale_figures(
                grid,
                np.asarray(means.ones_Kd[k]),
                float(means.near_zero_K[k]),
                float(means.psnr_K[k]),
            )
            for k, grid in enumerate(grids)
        ],
        'ones': np.round(means.ones_Kd, 5).tolist(),
    }


def scale_figures(grid: Grid, ones_d: np.ndarray, near_zero: float, ratio: float) -> dict[str, Any]:
    """Figures of a scale; pooled over scales they would hide a coarse bit that is constant."""
    p = np.clip(ones_d, 1e-12, 1 - 1e-12)
    entropy_d = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    return {
        'grid': list(grid),
        'psnr': float(ratio),  # after this and all coarser scales
        'bit_entropy': float(entropy_d.mean()),  # in bits; 1: each bit is 1 in half of the cases
        'least_used': float(ones_d.min()),  # share of ones of the least frequent bit
        'most_used': float(ones_d.max()),
        'balanced': float(np.mean((ones_d >= BALANCED[0]) & (ones_d <= BALANCED[1]))),  # bits
        'near_zero': float(near_zero),  # share of residuals below 0.05/√d
    }
