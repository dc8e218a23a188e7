"""GenEval in miniature: the share of generated scenes that show what their caption says."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from infinity_jax.config import QuantizationConfig
from infinity_jax.emoji.render import render_scene
from infinity_jax.emoji.scene import TASKS, Scene, scene_caption
from infinity_jax.emoji.scene_sampling import candidates, sample_scene
from infinity_jax.emoji.scene_search import search
from infinity_jax.images import check_writable
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.sharding import is_first_process
from infinity_jax.tools.evaluation.geneval_rules import Verdict
from infinity_jax.tools.evaluation.report.intervals import Estimate, accuracy, average
from infinity_jax.tools.evaluation.report.references import OVERALL
from infinity_jax.tools.evaluation.scene_rules import verdict
from infinity_jax.tools.evaluation.scenes_report import GENERATED, SHEET, Shown, write_report
from infinity_jax.training.transformer.demo_evaluation import reconstruct
from infinity_jax.training.transformer.emoji_model import open_emoji_model

SPLITS = {'trained': 'train', 'held_out': 'held_out'}
# A caption of a single object does not mention what is held out, its background.
TASKS_OF = {'trained': TASKS, 'held_out': TASKS[1:]}
SHOWN = 8  # images of each task and kind of combinations on the sheet


class Judged(NamedTuple):
    """A scene and the verdict on its image."""

    scene: Scene
    verdict: Verdict


def evaluate_scenes(
    folder: str | os.PathLike = DEMO_FOLDER,
    *,
    count: int = 100,
    subset: str | None = None,
    seed: int = 0,
    sampling: SamplingConfig = SamplingConfig(),
    quantization: QuantizationConfig = QuantizationConfig(),
    out: str | os.PathLike = '.',
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Generates scenes of six tasks, of trained and of held-out combinations, and judges them.

    The judge's own scores come first, on true renders and on their reconstructions by the
    tokenizer, which are the best that the model can reach. Prints a table; writes scenes.txt,
    scenes.json and a sheet of images with verdicts, scenes.png, into `out`.

    Args:
      folder: a complete model folder, of square images.
      count: captions of each task and kind of combinations.
      subset: emoji of the scenes; None: those that the model was trained on.
      seed: of captions and generation.
      sampling: guidance, temperature, top-k, top-p.
      quantization: the formats of weights and cache.
      out: where the files go.
      mesh: the devices that share the generation; None: the default device.

    Returns:
      the content of scenes.json.

    Raises:
      UserError: a value is not usable, or the folder is no model.
    """
    out = pathlib.Path(out)
    check_writable(out / SHEET)
    model = open_emoji_model(
        folder,
        count=count,
        subset=subset,
        subset_fields=('scene_subset', 'subset'),
        quantization=quantization,
        mesh=mesh,
    )
    loaded, pipeline, subset = model.loaded, model.pipeline, model.subset
    size = pipeline.image_size[0]
    results: dict[str, Any] = {
        'model': str(folder),
        'subset': subset,
        'candidates': len(candidates(subset)),
        'count': count,
        'seed': seed,
        'sampling': dataclasses.asdict(sampling),
        'quantization': dataclasses.asdict(quantization),
    }
    shown: list[Shown] = []
    for kind, split in SPLITS.items():
        scenes = evaluation_scenes(subset, split, TASKS_OF[kind], count, seed)
        captions = [scene_caption(scene) for scene in scenes]
        renders = np.stack([render_scene(scene, size) for scene in scenes])
        reconstructions, ratio = reconstruct(loaded, pipeline.schedule, renders)
        generated = pipeline(captions, seed=seed, sampling=sampling).pixels
        results[kind] = {'psnr': ratio}
        rows = {'renders': renders, 'reconstructions': reconstructions, GENERATED: generated}
        for row, images in rows.items():
            verdicts = judge_images(images, scenes, subset)
            results[kind][row] = scores(verdicts)
        for i, (scene, seen) in enumerate(verdicts):  # of the generated images
            if i % count < SHOWN:
                shown.append(Shown(generated[i], captions[i], scene.task, kind, seen))
    if is_first_process(mesh):
        write_report(out, results, shown)
    return results


def evaluation_scenes(
    subset: str, split: str, tasks: Sequence[str], count: int, seed: int
) -> list[Scene]:
    """`count` scenes of each task in turn; backgrounds are mentioned only where they are judged."""
    return [
        sample_scene(
            np.random.default_rng((seed, TASKS.index(task), i)), task, subset, split, mention_rate=0
        )
        for task in tasks
        for i in range(count)
    ]


def judge_images(images: np.ndarray, scenes: Sequence[Scene], subset: str) -> list[Judged]:
    """Verdicts on images, uint8 (N, Y, Y, 3), that should show the scenes."""
    sights = search(images, candidates(subset))
    return [Judged(s, verdict(s, sight)) for s, sight in zip(scenes, sights, strict=True)]


def scores(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """Accuracy of each task and their mean, with 95 % intervals and the number of images.

    Images of equal captions count as images of one prompt, see `intervals.accuracy`.
    """
    estimates: dict[str, Estimate] = {}
    counts: dict[str, int] = {}
    for task in TASKS:
        prompts: dict[str, list[bool]] = {}
        for scene, seen in judged:
            if scene.task == task:
                prompts.setdefault(scene_caption(scene), []).append(seen.correct)
        if prompts:
            estimates[task] = accuracy(list(prompts.values()))
            counts[task] = sum(map(len, prompts.values()))
    estimates[OVERALL] = average(list(estimates.values()))
    counts[OVERALL] = len(judged)
    return {name: {**e._asdict(), 'images': counts[name]} for name, e in estimates.items()}
