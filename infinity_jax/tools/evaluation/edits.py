"""Evaluation of editing with a demo model: the share of edits that the matcher finds right."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from infinity_jax.emoji.matcher import match
from infinity_jax.emoji.render import render
from infinity_jax.images import check_writable, contact_sheet, save_png
from infinity_jax.inference.edit import Edit
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.sharding import is_first_process
from infinity_jax.tools.evaluation import edit_trials
from infinity_jax.tools.evaluation.edit_trials import Trial
from infinity_jax.training.transformer.emoji_model import open_emoji_model

Run = Callable[[Sequence[Edit]], np.ndarray]
SHOWN = 4  # trials of each kind on the sheet
KINDS = {
    'inpainting': edit_trials.inpainting,
    'outpainting': edit_trials.outpainting,
    'background by words': edit_trials.background_by_words,
    'emoji by words': edit_trials.emoji_by_words,
}


def evaluate_edits(
    folder: str | os.PathLike = DEMO_FOLDER,
    *,
    count: int = 200,
    subset: str | None = None,
    seed: int = 0,
    sampling: SamplingConfig = SamplingConfig(),
    out: str | os.PathLike = '.',
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Edits renders in every way and counts the results that the matcher finds right.

    Right is an edit where both emoji and background are nearest to what they should be, at the
    size and place that they should have. The same prompts without any source are the comparison.
    Prints a table; writes edits.json, examples as edits.png and distances by strength as
    edits_strength.png into `out`.

    Args:
      folder: a complete model folder of square emoji images.
      count: edits of each kind.
      subset: emoji of the trials and candidates; None: those the model was trained on.
      seed: of trials and generation.
      sampling: guidance, temperature, top-k, top-p.
      out: where the files go.
      mesh: the devices that share the generation; None: the default device.
    """
    out = pathlib.Path(out)
    check_writable(out / 'edits.png')
    model = open_emoji_model(folder, count=count, subset=subset, mesh=mesh)
    pipeline, subset, candidates = model.pipeline, model.subset, model.candidates
    size = pipeline.image_size[0]
    results: dict[str, Any] = {'count': count, 'seed': seed, 'subset': subset}
    shown: list[np.ndarray] = []
    titles: list[str] = []

    def run(edits: Sequence[Edit]) -> np.ndarray:
        return np.stack(pipeline.edit(edits, seed=seed, sampling=sampling).pixels)

    for name, make in KINDS.items():
        trials = make(subset, count, seed, size)
        edits = [trial.edit for trial in trials]
        edited = run(edits)
        free = run([Edit(edit.image, edit.prompt, strength=1.0) for edit in edits])
        results[name] = {
            'edited': right(edited, trials, candidates),
            'without a source': right(free, trials, candidates),
        }
        if trials[0].kept_YX is not None:
            whole = run([dataclasses.replace(edit, composite=False) for edit in edits])
            results[name] |= outside(edited, whole, trials, run)
            results[name]['not composited'] = right(whole, trials, candidates)
        for trial, image in zip(trials[:SHOWN], edited, strict=False):
            shown += [with_grey_mask(trial), image]
            titles += ['source', f'{name}: {trial.edit.prompt}']
    trials = edit_trials.variations(subset, count, seed, size)
    results['variation'] = distances(len(pipeline.schedule), trials, run)
    if not is_first_process(mesh):
        return results
    save_png(out / 'edits.png', contact_sheet(np.stack(shown), titles))
    plot(results['variation'], out / 'edits_strength.png')
    (out / 'edits.json').write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
    print(table(results))
    return results


def with_grey_mask(trial: Trial) -> np.ndarray:
    """The source of a trial, where the mask covers it almost grey."""
    source = np.asarray(trial.edit.image)
    if trial.kept_YX is None:
        return source
    return np.where(trial.kept_YX[..., None], source, 96 + source // 4).astype(np.uint8)


def right(
    images: np.ndarray, trials: Sequence[Trial], candidates: Sequence[str]
) -> dict[str, float]:
    """Shares of images whose emoji, background and both are right, at their size and place."""
    specs = [dataclasses.replace(t.wanted, mention_size=True, mention_place=True) for t in trials]
    report = match(images, specs, candidates)
    both = report.emoji_right & report.background_right
    return {
        'emoji': report.emoji_rate,
        'background': report.background_rate,
        'both': float(both.mean()),
    }


def outside(
    edited: np.ndarray, whole: np.ndarray, trials: Sequence[Trial], run: Run
) -> dict[str, float]:
    """How well the rest is kept: equal pixels with compositing, PSNR in dB without.

    Args:
      edited, whole: composited images, and those that are the model's own everywhere.
      trials: whose `kept_YX` are compared.
      run: edits to images.
    """
    sources = np.stack([np.asarray(trial.edit.image) for trial in trials])
    wanted = np.stack([render(trial.wanted, sources.shape[1]) for trial in trials])
    kept = [trial.kept_YX for trial in trials]
    equal = [(a == b)[k].all() for a, b, k in zip(edited, sources, kept, strict=True)]

    def reconstructed(images: np.ndarray) -> np.ndarray:
        return run([Edit(image, 'reconstruction', strength=0.0) for image in images])

    return {
        'kept exactly': float(np.mean(equal)),
        'psnr': psnr(whole, sources, kept),
        'psnr of the reconstructed source': psnr(reconstructed(sources), sources, kept),
        'psnr of the reconstructed target': psnr(reconstructed(wanted), sources, kept),
    }


def psnr(images: np.ndarray, targets: np.ndarray, where: Sequence[Any]) -> float:
    """Mean PSNR in dB of 8-bit images over the chosen pixels of each."""
    values = []
    for image, target, chosen in zip(images, targets, where, strict=True):
        error = np.square(image.astype(np.float64) - target)[chosen].mean()
        values.append(10 * np.log10(255**2 / max(error, 1e-3)))
    return float(np.mean(values))


def distances(scales: int, trials: Sequence[Trial], run: Run) -> list[dict[str, float]]:
    """Root mean square distances, in 8-bit steps, to source and free generation by strength."""
    strengths = [1 - kept / scales for kept in range(scales, -1, -1)]
    images = [
        run([dataclasses.replace(trial.edit, strength=strength) for trial in trials])
        for strength in strengths
    ]
    sources = np.stack([np.asarray(trial.edit.image) for trial in trials])
    rows = []
    for strength, varied in zip(strengths, images, strict=True):
        rms = [
            float(np.sqrt(np.square(varied.astype(np.float64) - other).mean()))
            for other in (sources, images[-1])  # nothing is given at strength 1
        ]
        rows.append({'strength': strength, 'to source': rms[0], 'to free generation': rms[1]})
    return rows


def plot(rows: Sequence[dict[str, float]], path: pathlib.Path) -> None:
    """The distances by strength as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3), layout='constrained')
    axes = figure.subplots()
    for name in ('to source', 'to free generation'):
        axes.plot([r['strength'] for r in rows], [r[name] for r in rows], marker='o', label=name)
    axes.set_xlabel('strength')
    axes.set_ylabel('RMS distance (of 255)')
    axes.legend()
    figure.savefig(path, dpi=100)


def table(results: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [
        f'{results["count"]} edits of each kind',
        f'{"":24}{"emoji":>8}{"background":>12}{"both":>8}{"both without a source":>24}',
    ]
    for name in KINDS:
        edited, free = results[name]['edited'], results[name]['without a source']
        lines.append(
            f'{name:24}{edited["emoji"]:>7.1%} {edited["background"]:>11.1%} '
            f'{edited["both"]:>7.1%} {free["both"]:>23.1%}'
        )
    for name in KINDS:
        if 'psnr' in results[name]:
            row = results[name]
            lines.append(
                f'{name}, outside of the mask: {row["kept exactly"]:.1%} kept exactly; without '
                f'compositing {row["psnr"]:.1f} dB, reconstructed source '
                f'{row["psnr of the reconstructed source"]:.1f} dB, reconstructed target '
                f'{row["psnr of the reconstructed target"]:.1f} dB; both right '
                f'{row["not composited"]["both"]:.1%}'
            )
    for row in results['variation']:
        lines.append(
            f'strength {row["strength"]:.2f}: distance to source {row["to source"]:.1f}, to free '
            f'generation {row["to free generation"]:.1f}'
        )
    return '\n'.join(lines)
