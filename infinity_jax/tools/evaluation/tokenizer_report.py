"""The report of `evaluate tokenizer`: table, JSON, image strip and a plot of the bits."""

import json
import pathlib
from typing import Any

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.images import contact_sheet, save_png

JSON, STRIP, BITS = 'tokenizer.json', 'tokenizer_strip.png', 'tokenizer_bits.png'
BALANCED = (0.35, 0.65)  # shares of ones between which a bit counts as used


def write_report(out: pathlib.Path, results: dict[str, Any], strip: np.ndarray) -> None:
    """Writes tokenizer.json, tokenizer_strip.png and tokenizer_bits.png; prints the table.

    Args:
      results: as `evaluate_tokenizer` returns them.
      strip: uint8 (n, 1 + K, Y, X, 3), originals and their reconstructions from 1 to K scales.

    Raises:
      UserError: the folder cannot be written.
    """
    columns = strip.shape[1]
    names = ['original', *('x'.join(map(str, s['grid'])) for s in results['scales'])]
    sheet = contact_sheet(strip.reshape(-1, *strip.shape[2:]), names * len(strip), columns=columns)
    save_png(out / STRIP, sheet)
    try:
        plot_bits(results, out / BITS)
        text = json.dumps(results, indent=2) + '\n'
        (out / JSON).write_text(text, encoding='utf-8')
    except OSError as error:
        raise UserError(f'cannot write to {out}: {error}; choose another folder') from None
    print(table(results))
    print(f'{out}: {JSON}, {STRIP}, {BITS}')


def table(results: dict[str, Any]) -> str:
    """The figures as text: the totals, the Fréchet distance if there is one, a row per scale."""
    parts = [f'PSNR {results["psnr"]:.2f} dB', f'SSIM {results["ssim"]:.4f}']
    parts.append(f"edge energy {results['edge_energy']:.3f} of the originals'")
    if results['lpips'] is not None:
        parts.append(f'LPIPS {results["lpips"]:.4f}')
    lines = [
        f'{results["images"]} images of {results["size"]}², {results["bits"]} bits per code: '
        + ', '.join(parts),
        *([features_line(results)] if results['frechet'] else []),
        f'{"grid":>8}{"PSNR":>8}{"bit entropy":>13}{"ones":>16}{"balanced":>10}{"near zero":>11}',
    ]
    for scale in results['scales']:
        ones = f'{scale["least_used"]:.3f} to {scale["most_used"]:.3f}'
        lines.append(
            f'{"x".join(map(str, scale["grid"])):>8}{scale["psnr"]:8.2f}'
            f'{scale["bit_entropy"]:13.4f}{ones:>16}{scale["balanced"]:10.1%}'
            f'{scale["near_zero"]:11.1%}'
        )
    return '\n'.join(lines)


def features_line(results: dict[str, Any]) -> str:
    """The Fréchet distance, and a warning if its features are not of the images of the table."""
    found, images = results['frechet'], results['images']
    rows = found['originals'], found['reconstructions']
    line = (
        f'Fréchet distance {found["distance"]:.3f} by {found["file"]}: {rows[0]} originals, '
        f'{rows[1]} reconstructions, {found["width"]} features each'
    )
    return line if rows == (images, images) else f'{line}; NOT of the {images} images above'


def plot_bits(results: dict[str, Any], path: pathlib.Path) -> None:
    """Plots PSNR by number of scales, and by scale the use of bits, entropy and near zeros."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scales = results['scales']
    names = ['x'.join(map(str, scale['grid'])) for scale in scales]
    figure = Figure(figsize=(13, 4), layout='constrained')
    FigureCanvasAgg(figure)
    fidelity, usage, shares = figure.subplots(1, 3)
    fidelity.plot(names, [scale['psnr'] for scale in scales], marker='o')
    fidelity.set(xlabel='scales up to', ylabel='PSNR (dB)')
    for k, ones in enumerate(results['ones']):
        usage.plot([k] * len(ones), ones, '.', alpha=0.4, color='C0')
    usage.axhspan(*BALANCED, alpha=0.15, color='C2')
    usage.set_xticks(range(len(names)), names)
    usage.set(xlabel='scale', ylabel='share of ones of each bit', ylim=(0, 1))
    for name in ('bit_entropy', 'near_zero'):
        shares.plot(names, [s[name] for s in scales], marker='o', label=name.replace('_', ' '))
    shares.set(xlabel='scale', ylim=(0, 1.05))
    shares.legend()
    for axes in (fidelity, usage, shares):
        axes.tick_params(axis='x', rotation=45)
    figure.savefig(path, dpi=100)
