"""How well a tokenizer codes pictures: fidelity, use of its bits, and what each scale adds."""

import argparse
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TokenizerConfig, UserError
from infinity_jax.data.decode import decode
from infinity_jax.data.folder import ENDINGS, picture_paths
from infinity_jax.data.records import BrokenRecord
from infinity_jax.data.render import render
from infinity_jax.drawing.draw_steps import to_uint8
from infinity_jax.evaluation.matcher import evaluation_specs
from infinity_jax.evaluation.picture_metrics import WINDOW, frechet_distance, ssim
from infinity_jax.evaluation.tokenizer_report import BALANCED, write_report
from infinity_jax.pictures import from_uint8
from infinity_jax.pipeline import DEMO_FOLDER
from infinity_jax.scales import Grid
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.losses import psnr
from infinity_jax.tokenizer.perceptual import MIN_EDGE, lpips
from infinity_jax.tokenizer.quantizer import accumulate, quantize, residual_at
from infinity_jax.training.train_tokenizer_config import released_schedule
from infinity_jax.weights.model_folder import ModelBundle, load_model
from infinity_jax.weights.perceptual_files import perceptual_or_none
from infinity_jax.weights.weight_files import read_json

NEAR_ZERO = 0.05  # of a code's 1/√d: residuals below it carry noise; the released code's measure
BATCH_PIXELS = 2**18  # of pictures coded in one call: 64 of 64², one of 512² or larger
STRIP_PICTURES = 8


def evaluate_tokenizer(
    folder: str | os.PathLike,
    *,
    data: str = 'emoji',
    count: int = 256,
    size: int = 0,
    vgg: str = '',
    heads: str = '',
    features: str = '',
    out: str | os.PathLike = '.',
) -> dict[str, Any]:
    """Codes pictures and measures what comes back; prints a table and writes the report's files.

    Args:
      folder: model folder with a tokenizer.
      data: 'emoji' for held-out pairs of the embedded set, or a folder of pictures, which are
        resized to cover the size and cut at the centre.
      count: pictures; fewer where a folder holds fewer.
      size: pixels of an edge, for a tokenizer that names no schedule of its own; 0: 256.
      vgg, heads: weights of LPIPS, see `perceptual_files`; '': not measured.
      features: .npz with `originals` and `reconstructions` (N, D), made by a network of the user's
        choice; their Fréchet distance is the rFID if it is Inception. '': not measured.
      out: folder for tokenizer.json, tokenizer_strip.png, tokenizer_bits.png.

    Raises:
      UserError: model, pictures or weights are missing or do not fit.
    """
    if count < 1:
        raise UserError(f'count is {count}; evaluate 1 picture or more')
    bundle = load_model(folder, parts=('tokenizer',))
    if bundle.tokenizer_params is None:
        raise UserError(f'{folder}: holds no tokenizer; name the model folder of one')
    grids, edge = coding(pathlib.Path(folder), bundle, size)
    smallest = MIN_EDGE if vgg else WINDOW
    if edge < smallest:
        raise UserError(f'pictures of {edge} pixels; SSIM and LPIPS want {smallest} or more')
    distance = _features_distance(features) if features else None
    perceptual = perceptual_or_none(1.0, vgg, heads) if vgg or heads else None
    pictures = load_pictures(data, count, edge, bundle)
    sums, strip = measure(bundle, grids, perceptual, pictures)
    results = {
        'pictures': len(pictures),
        'data': data if data == 'emoji' else 'folder',
        'size': edge,
        'bits': bundle.tokenizer_config.bits,
        'grids': [list(grid) for grid in grids],
        'psnr': float(sums['psnr_K'][-1]),
        'ssim': float(sums['ssim']),
        'lpips': float(sums['lpips']) if 'lpips' in sums else None,
        'frechet_distance': distance,
        'scales': [
            scale_figures(grid, sums['ones_Kd'][k], sums['near_zero_K'][k], sums['psnr_K'][k])
            for k, grid in enumerate(grids)
        ],
        'ones': np.round(sums['ones_Kd'], 5).tolist(),
    }
    write_report(pathlib.Path(out), results, strip)
    return results


def run(args: argparse.Namespace) -> None:
    """`infinity-jax evaluate tokenizer`."""
    evaluate_tokenizer(
        args.checkpoint or DEMO_FOLDER,
        data=args.data,
        count=args.count,
        size=args.size,
        vgg=args.vgg,
        heads=args.lpips_heads,
        features=args.features,
        out=args.out,
    )


def coding(folder: pathlib.Path, bundle: ModelBundle, size: int) -> tuple[tuple[Grid, ...], int]:
    """The code grids of a square picture and its edge in pixels."""
    stride = bundle.tokenizer_config.stride
    if bundle.schedule is None:
        edge = size or 256
        return released_schedule((edge, edge)).code_grids(patchify=stride < 16), edge
    described = read_json(folder / 'config.json').get('transformer') or {}
    grids = bundle.schedule.code_grids(described.get('spatial_patchify', False))
    height, width = (n * stride for n in grids[-1])
    if height != width or size not in (0, height):
        raise UserError(
            f'{folder}: codes pictures of {height} x {width} pixels; wanted squares, and --size '
            f'{size or height} to be theirs'
        )
    return grids, height


def load_pictures(data: str, count: int, size: int, bundle: ModelBundle) -> np.ndarray:
    """uint8 (N, size, size, 3), always the same ones: the first of a folder by name, or emoji."""
    if data == 'emoji':
        subset = bundle.extra.get('run', {}).get('data', {}).get('subset', 'all')
        return np.stack([render(s, size) for s in evaluation_specs(subset, 'held_out', count)])
    folder = pathlib.Path(data)
    if not folder.is_dir():
        raise UserError(f"--data {data}: no such folder; wanted 'emoji' or a folder of pictures")
    paths = picture_paths(folder)[:count]
    if not paths:
        raise UserError(f'--data {data}: no pictures there ({", ".join(ENDINGS)})')
    return np.stack([_open_square(path, size) for path in paths])


def _open_square(path: pathlib.Path, size: int) -> np.ndarray:
    try:
        return decode(path.open('rb'), (size, size))  # as in training
    except (OSError, BrokenRecord) as error:
        raise UserError(f'{path}: not a readable picture ({error}); mend or remove it') from None


def _features_distance(path: str) -> float:
    try:
        with np.load(path, allow_pickle=False) as file:
            sets = [file[name] for name in ('originals', 'reconstructions')]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f'--features {path}: {error}; wanted .npz with originals and reconstructions (N, D)'
        ) from None
    shapes = [s.shape for s in sets]
    if any(len(s) != 2 or s[0] < 2 for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise UserError(
            f'--features {path}: shapes {shapes[0]} and {shapes[1]}; wanted (N, D), N above 1'
        )
    return frechet_distance(*sets)


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
    bundle: ModelBundle, grids: tuple[Grid, ...], perceptual: Any, pictures: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Means over all pictures, and (n, 1 + K, Y, X, 3): originals beside what scales make."""
    config = bundle.tokenizer_config
    run = jax.jit(functools.partial(code_batch, config=config, grids=grids))
    size = max(1, BATCH_PIXELS // pictures.shape[1] ** 2)
    sums: dict[str, np.ndarray] = {}
    strips: list[np.ndarray] = []
    for start in range(0, len(pictures), size):
        batch = pictures[start : start + size]
        means, decoded = run(bundle.tokenizer_params, perceptual, batch)
        for name, value in means.items():
            sums[name] = sums.get(name, 0) + np.asarray(value, np.float64) * len(batch)
        if len(strips) < STRIP_PICTURES:
            rows = np.concatenate([batch[None], decoded]).swapaxes(0, 1)
            strips += list(rows[: STRIP_PICTURES - len(strips)])
    return {name: value / len(pictures) for name, value in sums.items()}, np.stack(strips)


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
