"""FID, KID, precision and recall on features of the Inception network of 2015, by torch-fidelity.

The network and the three metrics are those of the package; its weights are a file of the user.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.tools.evaluation.image_metrics import frechet_distance
from infinity_jax.tools.evaluation.judges.image_folder import read_pixels, write_scores
from infinity_jax.tools.evaluation.judges.packages import import_optional
from infinity_jax.tools.evaluation.recognition.image_sets import CHANGES, HALVES, images_in
from infinity_jax.weights.weight_files import is_tensor, open_weights

INSTALL = "pip install 'infinity_jax[fid]'"
FILE = 'fid_scores.json'
GENERATED, TRUE = 'pred', 'gt'  # folders
NETWORK, LAYER = 'inception-v3-compat', '2048'  # torch-fidelity's names
FEATURES = 2048
BATCH = 32
SUBSET = 1000  # images of each of KID's subsets
FEWEST = 4  # images of a set: precision and recall look at the third neighbour
CALIBRATED = 2000  # true images that the calibration uses, at most
# Tensors that tell the network of 2015 from that of torchvision, which has 1,000 classes.
SHAPES = {
    'Conv2d_1a_3x3.conv.weight': (32, 3, 3, 3),
    'Mixed_7c.branch_pool.conv.weight': (192, 2048, 1, 1),
    'fc.weight': (1008, FEATURES),
}

Extractor = Callable[[np.ndarray], np.ndarray]  # uint8 (B, Y, X, 3) -> features (B, D)


def evaluate_fid(folder: pathlib.Path, weights: pathlib.Path) -> dict[str, Any]:
    """Compares the images in pred/ with those in gt/; prints a calibration first.

    Args:
      folder: of `evaluate captions` or `evaluate tokenizer --save`, with pred/ and gt/.
      weights: weights-inception-2015-12-05-6726825d.pth of torch-fidelity.

    Returns:
      the content of fid_scores.json, which is written into the folder.

    Raises:
      UserError: too few images, one that cannot be read, other weights, or no torch-fidelity.
    """
    generated, true = (_paths(folder / name) for name in (GENERATED, TRUE))
    extract = load_network(weights)
    true_features = features_of(extract, true)
    distances = calibration(extract, true, true_features)
    print(f'calibration: FID of one half of {min(len(true), CALIBRATED)} true images to')
    print('\n'.join(f'  {name:20}{value:10.2f}' for name, value in distances.items()))
    if worse := [name for name, value in distances.items() if value < distances[HALVES]]:
        print(f'  warning: {", ".join(worse)} should be farther away than {HALVES}')
    results = {
        'images': {GENERATED: len(generated), TRUE: len(true)},
        'weights': weights.name,
        'calibration': distances,
        **measure(features_of(extract, generated), true_features),
    }
    write_scores(folder / FILE, results)
    return results


def _paths(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    paths = images_in(folder)
    if len(paths) < FEWEST:
        raise UserError(f'{folder}: {len(paths)} images; wanted {FEWEST} or more')
    return paths


def load_network(path: pathlib.Path) -> Extractor:
    """The Inception network of torch-fidelity, on a GPU if torch sees one.

    torch would execute what a damaged or strange file asks for: our reader, which does not, looks
    at the file first.

    Raises:
      UserError: the weights are of another network, or torch-fidelity is not installed.
    """
    module = import_optional('torch_fidelity.feature_extractor_inceptionv3', INSTALL)
    torch = import_optional('torch', INSTALL)
    tensors = open_weights(path)
    for name, shape in SHAPES.items():
        tensor: Any = tensors.get(name)
        seen = tuple(tensor.shape) if is_tensor(tensor) else 'absent'
        if seen != shape:
            raise UserError(
                f'--inception {path}: {name} is {seen}; wanted {shape}, of '
                'weights-inception-2015-12-05-6726825d.pth (the release page of torch-fidelity)'
            )
    try:
        network = module.FeatureExtractorInceptionV3(
            NETWORK, [LAYER], feature_extractor_weights_path=str(path)
        )
    except Exception as error:  # torch's, of many kinds
        raise UserError(f'--inception {path}: {in_one_line(error, 300)}') from None
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    network = network.to(device)

    def extract(pixels_BYX3: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(pixels_BYX3.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            return network(batch.to(device))[0].cpu().numpy()

    return extract


def features_of(
    extract: Extractor,
    paths: Sequence[pathlib.Path],
    change: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> np.ndarray:
    """Features of files, (N, D).

    Args:
      extract: the network.
      paths: one or more images.
      change: applied to the pixels of each image, with its number.
    """

    def images() -> Iterator[np.ndarray]:
        for i, path in enumerate(tqdm(paths, 'features', unit=' images', disable=None)):
            pixels = read_pixels(path)
            yield pixels if change is None else change(pixels, i)

    parts = []
    for _, equal in itertools.groupby(images(), lambda pixels: pixels.shape):
        while batch := list(itertools.islice(equal, BATCH)):
            parts.append(extract(np.stack(batch)))
    return np.concatenate(parts)


def calibration(
    extract: Extractor, paths: Sequence[pathlib.Path], features_ND: np.ndarray
) -> dict[str, float]:
    """FID of one half of the true images to the other half, and to changed copies of the other."""
    features, paths = features_ND[:CALIBRATED], paths[:CALIBRATED]
    distances = {HALVES: frechet_distance(features[::2], features[1::2])}
    for name, change in CHANGES.items():
        copies = features_of(extract, paths[1::2], change)
        distances[name] = frechet_distance(features[::2], copies)
    return distances


def measure(generated_ND: np.ndarray, true_ND: np.ndarray) -> dict[str, Any]:
    """FID, KID, precision and recall by torch-fidelity.

    Precision is the share of generated images among the true ones, recall the reverse; KID is a
    mean over random subsets.
    """
    torch = import_optional('torch', INSTALL)
    fid, kid, prc = (
        import_optional(f'torch_fidelity.metric_{name}', INSTALL) for name in ('fid', 'kid', 'prc')
    )
    features = [torch.from_numpy(np.ascontiguousarray(x)) for x in (generated_ND, true_ND)]
    statistics = [fid.fid_features_to_statistics(x) for x in features]
    subset = min(SUBSET, *(len(x) for x in features))
    found = {
        **fid.fid_statistics_to_metric(*statistics, verbose=False),
        **kid.kid_features_to_metric(*features, kid_subset_size=subset, verbose=False),
        **prc.prc_features_to_metric(*features, verbose=False),
    }
    return {
        'FID': found[fid.KEY_METRIC_FID],
        'KID': found[kid.KEY_METRIC_KID_MEAN],
        'kid_spread': found[kid.KEY_METRIC_KID_STD],
        'kid_subset': subset,
        'precision': found[prc.KEY_METRIC_PRECISION],
        'recall': found[prc.KEY_METRIC_RECALL],
    }
