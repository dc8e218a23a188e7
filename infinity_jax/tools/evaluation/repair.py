"""Whether a model repairs the mistakes of earlier scales: bits are flipped while it generates.

Self-correction (paper 3.4) trains on such flips, and its targets at later scales repair them.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infinity_jax.config import required
from infinity_jax.emoji.image_spec import ImageSpec, caption
from infinity_jax.emoji.matcher import evaluation_specs, match
from infinity_jax.emoji.render import render
from infinity_jax.images import check_writable, from_uint8, to_uint8
from infinity_jax.inference.job import GenerationJob, check_flip_rate
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.inference.sampling import SamplingConfig, flip_bits
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import is_first_process
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import total_from_bits
from infinity_jax.tools.evaluation.repair_report import (
    GENERATED,
    IGNORED,
    REPAIRED,
    SHEET,
    Shown,
    write_report,
)
from infinity_jax.tools.evaluation.report.intervals import accuracy
from infinity_jax.training.transformer.demo_evaluation import PAIRS
from infinity_jax.training.transformer.emoji_model import BATCH, open_emoji_model
from infinity_jax.training.transformer.self_correction import correct
from infinity_jax.weights.model_folder import LoadedModel

RATES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
SHOWN = 4  # captions of each kind of pairs on the sheet
Images = Callable[[float], np.ndarray]  # rate of flips -> uint8 (N, Y, X, 3)


def evaluate_repair(
    folder: str | os.PathLike = DEMO_FOLDER,
    *,
    rates: Sequence[float] = RATES,
    references: bool = True,
    count: int = 100,
    subset: str | None = None,
    seed: int = 0,
    sampling: SamplingConfig = SamplingConfig(),
    out: str | os.PathLike = '.',
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Flips sampled bits of all scales but the last, and counts the emoji that are still right.

    The captions and, at rate 0, the images are those of `evaluate_demo`. The references show what
    the tokenizer makes of the true images when their bits are flipped: at best, where later scales
    have the bits that self-correction teaches, and where later scales ignore the flips. Prints a
    table; writes repair.json, images as repair.png and a plot, repair_rates.png, into `out`.

    Args:
      folder: a complete model folder of square emoji images.
      rates: probabilities of a flip, 0 to 1.
      references: whether the true images are flipped as well.
      count: captions of each kind.
      subset: emoji of the captions and of the candidates; None: those the model was trained on.
      seed: of captions, generation and flips.
      sampling: guidance, temperature, top-k, top-p.
      out: where the files go.
      mesh: the devices that share the generation; None: the default device.

    Returns:
      the content of repair.json: per rate, kind of pairs and row the shares with 95 % intervals,
      and `distance`, the root mean square of the change of 8-bit pixels by the flips.

    Raises:
      UserError: no image is asked for, a rate is no probability, or the folder is no model.
    """
    for rate in rates:
        check_flip_rate(rate)
    out = pathlib.Path(out)
    check_writable(out / SHEET)
    model = open_emoji_model(folder, count=count, subset=subset, mesh=mesh)
    loaded, pipeline, subset, candidates, placed_rate = model
    by_rate: dict[str, dict[str, Any]] = {f'{rate:g}': {} for rate in rates}
    results: dict[str, Any] = {
        'model': str(folder),
        'subset': subset,
        'placed_rate': placed_rate,
        'candidates': len(candidates),
        'count': count,
        'seed': seed,
        'sampling': dataclasses.asdict(sampling),
        'rates': by_rate,
    }
    shown: list[Shown] = []
    for kind in PAIRS:
        specs = evaluation_specs(subset, kind, count, seed, placed_rate)
        captions = [caption(spec) for spec in specs]
        rows = {GENERATED: _generate(pipeline, captions, seed, sampling)}
        if references:
            renders = np.stack([render(spec, pipeline.image_size[0]) for spec in specs])
            rows |= _references(loaded, pipeline.schedule, renders, seed)
        unflipped = {row: images(0.0) for row, images in rows.items()}
        for rate in rates:
            judged = by_rate[f'{rate:g}'][kind] = {}
            for row, images in rows.items():
                flipped = images(rate) if rate else unflipped[row]
                judged[row], right = _judge(flipped, unflipped[row], specs, candidates)
                if row == GENERATED:
                    triples = zip(flipped[:SHOWN], specs, right, strict=False)
                    shown += [Shown(x, caption(spec), rate, ok) for x, spec, ok in triples]
    if is_first_process(mesh):
        write_report(out, results, shown)
    return results


def _judge(
    images: np.ndarray, unflipped: np.ndarray, specs: Sequence[ImageSpec], candidates: Sequence[str]
) -> tuple[dict[str, Any], list[bool]]:
    """The figures of one row, and whether emoji and background are right in each image."""
    report = match(images, specs, candidates)
    change = images.astype(np.float64) - unflipped
    figures: dict[str, Any] = {'distance': float(np.sqrt(np.square(change).mean()))}
    for name, right in (('emoji', report.emoji_right), ('background', report.background_right)):
        by_caption: dict[str, list[bool]] = {}
        for spec, each in zip(specs, right, strict=True):
            by_caption.setdefault(caption(spec), []).append(bool(each))
        figures[name] = accuracy(list(by_caption.values()))._asdict()
    return figures, (report.emoji_right & report.background_right).tolist()


def _generate(
    pipeline: InfinityPipeline, captions: Sequence[str], seed: int, sampling: SamplingConfig
) -> Images:
    """The model's images by rate."""
    seeds = [(seed, i) for i in range(len(captions))]

    def images(rate: float) -> np.ndarray:
        job = GenerationJob(captions, seeds, pipeline.schedule, sampling=sampling, flip_rate=rate)
        return np.concatenate([*pipeline.run(job)])

    return images


def _references(
    loaded: LoadedModel, schedule: ScaleSchedule, renders: np.ndarray, seed: int
) -> dict[str, Images]:
    """True images, uint8 (N, Y, X, 3), through the tokenizer and back, by rate."""
    model = Autoencoder(required(loaded.configs.tokenizer, 'tokenizer'))
    patchify, params = loaded.configs.spatial_patchify, loaded.tokenizer_params
    starts = range(0, len(renders), BATCH)
    features = [_encode(model, params, renders[start : start + BATCH]) for start in starts]

    def images(rate: float, repair: bool) -> np.ndarray:
        static = (model, schedule, patchify, repair)
        keys = [jax.random.fold_in(jax.random.key(seed), start) for start in starts]
        return np.concatenate(
            [
                _reconstruct(*static, params, batch, key, rate)
                for batch, key in zip(features, keys, strict=True)
            ]
        )

    return {
        REPAIRED: functools.partial(images, repair=True),
        IGNORED: functools.partial(images, repair=False),
    }


@functools.partial(jax.jit, static_argnames='model')
def _encode(model: Autoencoder, params: Any, pixels: jax.Array) -> jax.Array:
    """The features (B, h, w, d) of images, uint8 (B, Y, X, 3)."""
    features = model.apply({'params': params}, from_uint8(pixels), method=Autoencoder.encode)
    return cast(jax.Array, features).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _reconstruct(
    model: Autoencoder,
    schedule: ScaleSchedule,
    patchify: bool,
    repair: bool,
    params: Any,
    features_Bhwd: jax.Array,
    key: jax.Array,
    rate: float,
) -> jax.Array:
    """Images, uint8 (B, Y, X, 3), of features whose bits are flipped in all scales but the last.

    Args:
      model: the tokenizer; static, as are schedule, patchify and repair.
      schedule: the token grids.
      patchify: whether 2×2 codes fold into one token.
      repair: whether later scales have the bits that repair the flips; False: those without flips.
      params: of the tokenizer.
      features_Bhwd: of the images.
      key: of the flips.
      rate: probability of a flip.
    """
    all_bits: list[jax.Array] = []

    def flip(scale: int, bits: jax.Array) -> jax.Array:
        if scale + 1 < len(schedule):
            keys = jax.random.split(jax.random.fold_in(key, scale), len(bits))
            bits = flip_bits(keys, bits, jnp.float32(rate))
        all_bits.append(bits)
        return bits

    correct(features_Bhwd, schedule, flip, patchify=patchify, requantize=repair)
    total = total_from_bits(tuple(all_bits))
    pixels = model.apply({'params': params}, total, method=Autoencoder.decode)
    return to_uint8(cast(jax.Array, pixels))
