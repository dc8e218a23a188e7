"""The Fréchet distance of features in an .npz file, computed by a network of the user's choice."""

import dataclasses
import os
import pathlib
import zipfile
import zlib

import numpy as np

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.tools.evaluation.image_metrics import frechet_distance

ARRAYS = ('originals', 'reconstructions')
WANTED = f'wanted .npz with {ARRAYS[0]} and {ARRAYS[1]}, numbers (N, D), N above 1'
UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class FeatureDistance:
    """A Fréchet distance and the features that it compares.

    Attributes:
      distance: rFID if the features are Inception's.
      file: name of the file, without its folder.
      originals: rows of the array `originals`.
      reconstructions: rows of the array `reconstructions`.
      width: features per row.
    """

    distance: float
    file: str
    originals: int
    reconstructions: int
    width: int


def features_distance(path: str | os.PathLike) -> FeatureDistance:
    """Distance of the arrays `originals` and `reconstructions`, (N, D) each, in an .npz file.

    Raises:
      UserError: the file cannot be read, lacks an array, or one is not of finite numbers (N, D)
        with two rows or more; or they differ in D, or are too large to square.
    """
    originals, reconstructions = sets = _read(path)
    for name, array in zip(ARRAYS, sets, strict=True):
        _check(path, name, array)
    widths = [array.shape[1] for array in sets]
    if widths[0] != widths[1]:
        raise UserError(
            f'--features {path}: {ARRAYS[0]} has {widths[0]} numbers per row, {ARRAYS[1]} '
            f'{widths[1]}; wanted equal ones, of the same network'
        )
    try:
        with np.errstate(over='ignore', invalid='ignore'):  # overflow is reported below
            distance = frechet_distance(originals, reconstructions)
    except np.linalg.LinAlgError:
        largest = max(float(np.abs(array).max()) for array in sets)
        raise UserError(
            f'--features {path}: numbers up to {largest:.3g} have no finite covariance; wanted '
            'features as a network computes them'
        ) from None
    return FeatureDistance(
        distance,
        pathlib.Path(path).name,
        len(originals),
        len(reconstructions),
        widths[0],
    )


def _read(path: str | os.PathLike) -> list[np.ndarray]:
    part = 'the file'
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise UserError(f'--features {path}: one array, of shape {file.shape}; {WANTED}')
        with file:
            absent = [name for name in ARRAYS if name not in file.files]
            if absent:
                raise UserError(
                    f'--features {path}: no {" and no ".join(absent)}, but '
                    f'{", ".join(file.files) or "nothing"}; {WANTED}'
                )
            sets = []
            for part in ARRAYS:
                sets.append(file[part])
            return sets
    except UserError:  # it is a ValueError as well
        raise
    except UNREADABLE as error:
        reason = in_one_line(error)
        raise UserError(f'--features {path}: {part} cannot be read ({reason}); {WANTED}') from None


def _check(path: str | os.PathLike, name: str, array: np.ndarray) -> None:
    named = f'--features {path}: {name}'
    if array.dtype.kind not in 'fiu':
        raise UserError(f'{named} is of dtype {array.dtype}; {WANTED}')
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
        raise UserError(f'{named} is of shape {array.shape}; {WANTED}')
    broken = np.count_nonzero(~np.isfinite(array).all(1))
    if broken:
        raise UserError(
            f'{named} has NaN or infinity in {broken} of {len(array)} rows; wanted finite numbers: '
            'compute the features again'
        )
