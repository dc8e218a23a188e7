"""Reads the weights of LPIPS from files that the user names; downloads nothing."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.training.tokenizer.lpips import BLOCKS, convolution_shapes
from infinity_jax.weights.weight_files import is_tensor, open_weights

# Positions of the convolutions in torchvision's list of VGG-16's layers.
TORCHVISION_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
HEAD_NAME = 'lin{}.model.1.weight'  # in the LPIPS package's own vgg.pth
MAX_NAMED = 5  # wrong weights that an error names; as many as there are heads


def load_lpips(vgg: str | os.PathLike[str], heads: str | os.PathLike[str]) -> dict[str, Any]:
    """Parameters of `lpips.lpips`, numpy float32.

    Args:
      vgg: VGG-16 in torchvision's format, `features.{0,2,5,…}.weight` and `.bias`, as .pth or
        .safetensors; its classifier is not read.
      heads: `lin{0…4}.model.1.weight`, as the LPIPS package (version 0.1) has them in `vgg.pth`.

    Raises:
      UserError: a file cannot be read, or weights are missing or misshapen; the first are named.
    """
    tensors = open_weights(vgg)
    shapes = dict(zip(TORCHVISION_INDICES, convolution_shapes().items(), strict=True))
    expected: dict[str, tuple[int, ...]] = {}
    for index, (_, (height, width, inner, outer)) in shapes.items():
        expected[f'features.{index}.weight'] = (outer, inner, height, width)
        expected[f'features.{index}.bias'] = (outer,)
    arrays = _read(vgg, tensors, expected, "VGG-16 in torchvision's format")
    layers = {
        name: {
            'kernel': np.ascontiguousarray(
                arrays[f'features.{index}.weight'].transpose(2, 3, 1, 0)
            ),
            'bias': arrays[f'features.{index}.bias'],
        }
        for index, (name, _) in shapes.items()
    }
    widths = {HEAD_NAME.format(i): (1, block[-1], 1, 1) for i, block in enumerate(BLOCKS)}
    head_arrays = _read(heads, open_weights(heads), widths, 'LPIPS heads for VGG-16, version 0.1')
    return {'vgg': layers, 'heads': tuple(head_arrays[name].reshape(-1) for name in widths)}


def _read(
    path: Any, tensors: Any, expected: Mapping[str, tuple[int, ...]], content: str
) -> dict[str, np.ndarray]:
    """Reads the arrays of the expected names and shapes in float32, and no others."""
    shapes = {n: tuple(t.shape) if is_tensor(t) else 'no tensor' for n, t in tensors.items()}
    wrong = [
        f'{name} {shape} is {shapes.get(name, "absent")}'
        for name, shape in expected.items()
        if shapes.get(name) != shape
    ]
    if wrong:
        more = f' and {len(wrong) - MAX_NAMED} more' if len(wrong) > MAX_NAMED else ''
        raise UserError(
            f'{path}: wanted {content}, but {"; ".join(wrong[:MAX_NAMED])}{more}; name a file of '
            'that kind'
        )
    return {name: np.asarray(tensors[name].read(), np.float32) for name in expected}


def lpips_or_none(weight: float, vgg: str, heads: str) -> dict[str, Any] | None:
    """The weights of LPIPS on the host; None where the term is off, or for lack of files.

    Prints a line where the term is wanted and no files are named.

    Args:
      weight: losses.perceptual; 0: off.
      vgg: config.vgg_weights.
      heads: config.lpips_heads.

    Raises:
      UserError: one file is named without the other, or both for a term that is off, or they
        cannot be read.
    """
    if bool(vgg) != bool(heads):
        raise UserError(
            f'config.vgg_weights is {vgg!r} and config.lpips_heads {heads!r}: LPIPS wants both '
            'files; name both or neither'
        )
    if not weight:
        if vgg:
            raise UserError(
                f'losses.perceptual is {weight:g}, so config.vgg_weights {vgg!r} and '
                f'config.lpips_heads {heads!r} would not be used; set losses.perceptual above 0 '
                '(1 as published), or name no files'
            )
        return None
    if not vgg:
        if jax.process_index() == 0:
            print(
                'perceptual term off: losses.perceptual is '
                f'{weight:g}, but config.vgg_weights and config.lpips_heads name no files'
            )
        return None
    return load_lpips(vgg, heads)
