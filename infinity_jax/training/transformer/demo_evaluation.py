"""Evaluation of a demo model: the share of images in which the matcher sees the prompt."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from infinity_jax.config import QuantizationConfig, required
from infinity_jax.emoji.image_spec import caption
from infinity_jax.emoji.matcher import evaluation_specs, match
from infinity_jax.emoji.render import render
from infinity_jax.images import (
    check_writable,
    claim_pairs,
    contact_sheet,
    from_uint8,
    psnr,
    save_pairs,
    save_png,
    to_uint8,
)
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.scales import Grid, ScaleSchedule
from infinity_jax.sharding import is_first_process
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import quantize
from infinity_jax.training.transformer.emoji_model import BATCH, open_emoji_model
from infinity_jax.weights.model_folder import LoadedModel

PAIRS = ('trained', 'held_out')
GENERATED, FORMER_NAME = 'generated', 'drawn'  # the latter in JSON files, for one release
SHEET_IMAGES = 32  # per kind of pairs, on the contact sheet


def reconstruct(
    loaded: LoadedModel, schedule: ScaleSchedule, images: np.ndarray
) -> tuple[np.ndarray, float]:
    """Images, uint8 (N, Y, X, 3), through the tokenizer and back; and their mean PSNR in dB."""
    model = Autoencoder(required(loaded.configs.tokenizer, 'tokenizer'))
    grids = schedule.code_grids(loaded.configs.spatial_patchify)

    outputs, ratios = [], []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        decoded, ratio = _reconstruct(model, grids, loaded.tokenizer_params, batch)
        outputs.append(np.asarray(decoded))
        ratios.append(float(ratio) * len(batch))
    return np.concatenate(outputs), sum(ratios) / len(images)


@functools.partial(jax.jit, static_argnames=('model', 'grids'))  # one program for all calls
def _reconstruct(
    model: Autoencoder, grids: tuple[Grid, ...], params: Any, pixels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    target = from_uint8(pixels)
    features = model.apply({'params': params}, target, method=Autoencoder.encode)
    total = quantize(cast(jax.Array, features), grids).total_Bhwd
    decoded = model.apply({'params': params}, total, method=Autoencoder.decode)
    generated = cast(jax.Array, decoded)
    return to_uint8(generated), psnr(generated, target)


def evaluate_demo(
    folder: str | os.PathLike = DEMO_FOLDER,
    *,
    count: int = 200,
    subset: str | None = None,
    seed: int = 0,
    sampling: SamplingConfig = SamplingConfig(),
    quantization: QuantizationConfig = QuantizationConfig(),
    out: str | os.PathLike = '.',
    mesh: Mesh | None = None,
    adapters: Sequence[str] = (),
    save: str | os.PathLike = '',
) -> dict[str, Any]:
    """Generates images of trained and held-out captions and counts those the matcher recognises.

    Three rows for each kind of pairs: the model's images and, for comparison, true renders and
    their reconstructions. Some captions name a size and a place, unless the model was trained on
    large emoji alone. Prints a table; writes evaluation.json and a contact sheet,
    evaluation.png, into `out`.

    Args:
      folder: a complete model folder.
      count: captions of each kind.
      subset: emoji of the captions and of the candidates; None: those the model was trained on.
      seed: of captions and generation.
      sampling: guidance, temperature, top-k, top-p.
      quantization: the formats of weights and cache.
      out: where the files go.
      mesh: the devices that share the generation; None: the default device.
      adapters: LoRA adapters of the model, see `Adapter.parse`.
      save: folder for true renders and generated images, PNGs of equal names in `gt` and `pred`;
        those of trained pairs come first; '': not written.

    Raises:
      UserError: no image is asked for, a file that cannot be written, files that are already in the
        folders of `save`, or adapters that do not fit.
    """
    out = pathlib.Path(out)
    check_writable(out / 'evaluation.png')
    if save:
        claim_pairs(pathlib.Path(save))
    model = open_emoji_model(
        folder, count=count, subset=subset, quantization=quantization, mesh=mesh, adapters=adapters
    )
    loaded, pipeline, subset, candidates, placed_rate = model
    code_grids = pipeline.schedule.code_grids(loaded.configs.spatial_patchify)
    size = code_grids[-1][0] * required(loaded.configs.tokenizer, 'tokenizer').stride
    results: dict[str, Any] = {
        'model': str(folder),
        'adapters': list(adapters),
        'subset': subset,
        'placed_rate': placed_rate,
        'candidates': len(candidates),
        'count': count,
        'seed': seed,
        'sampling': dataclasses.asdict(sampling),
        'quantization': dataclasses.asdict(quantization),
    }
    shown, titles, marks = [], [], []
    pairs = []  # of true renders and generated images
    for kind in PAIRS:
        specs = evaluation_specs(subset, kind, count, seed, placed_rate)
        captions = [caption(spec) for spec in specs]
        renders = np.stack([render(spec, size) for spec in specs])
        reconstructions, ratio = reconstruct(loaded, pipeline.schedule, renders)
        images = pipeline(captions, seed=seed, sampling=sampling)
        generated = images.pixels
        # Of the last kind, whose program the first one has compiled.
        results['seconds_per_image'] = sum(images.batch_seconds) / count
        results[kind] = {'psnr': ratio}
        rows = {GENERATED: generated, 'reconstructions': reconstructions, 'renders': renders}
        for row, pixels in rows.items():
            report = match(pixels, specs, candidates)
            results[kind][row] = {
                'emoji': report.emoji_rate,
                'background': report.background_rate,
            }
            if row == GENERATED:
                marks += (report.emoji_right & report.background_right)[:SHEET_IMAGES].tolist()
        results[kind][FORMER_NAME] = results[kind][GENERATED]
        pairs.append((renders, generated))
        shown.append(generated[:SHEET_IMAGES])
        titles += captions[:SHEET_IMAGES]
    if not is_first_process(mesh):
        return results
    save_png(out / 'evaluation.png', contact_sheet(np.concatenate(shown), titles, marks))
    (out / 'evaluation.json').write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
    print(table(results))
    if save:
        for number, (renders, generated) in enumerate(pairs):
            save_pairs(pathlib.Path(save), number * count, renders, generated)
        print(f'{2 * count} true renders and generated images: {save}/gt, {save}/pred')
    return results


def table(results: dict[str, Any]) -> str:
    """The figures as text, one row per kind of pairs and of images."""
    lines = [
        f'{results["count"]} captions of each kind, {results["candidates"]} candidate emoji',
        f'{"pairs":10}{"images":18}{"emoji right":>12}{"background right":>18}{"PSNR":>10}',
    ]
    for kind in PAIRS:
        for row in (GENERATED, 'reconstructions', 'renders'):
            rates = results[kind][row]
            decibel = f'{results[kind]["psnr"]:.1f} dB' if row == 'reconstructions' else ''
            lines.append(
                f'{kind:10}{row:18}{rates["emoji"]:>11.1%} {rates["background"]:>17.1%} '
                f'{decibel:>9}'
            )
    return '\n'.join(lines)
