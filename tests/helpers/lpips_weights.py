"""VGG-16 of random values as the reference arrays want it, in torchvision's names."""

import functools

import numpy as np
import safetensors.numpy
from helpers import paths

from infinity_jax.training.tokenizer import lpips as lpips_module
from infinity_jax.training.tokenizer import lpips_files
from infinity_jax.training.tokenizer.lpips import convolution_shapes
from infinity_jax.training.tokenizer.lpips_files import HEAD_NAME, TORCHVISION_INDICES

GOLDEN = paths.GOLDEN / 'lpips'


@functools.cache
def vgg_tensors():
    tensors = {}
    for i, (index, shape) in enumerate(
        zip(TORCHVISION_INDICES, convolution_shapes().values(), strict=True)
    ):
        _, _, inner, outer = shape
        scale = np.float32(np.sqrt(2 / (inner * 9)))
        weight = np.random.RandomState(i).randn(outer, inner, 3, 3).astype(np.float32) * scale
        tensors[f'features.{index}.weight'] = weight
        tensors[f'features.{index}.bias'] = np.zeros(outer, np.float32)
    tensors['classifier.0.weight'] = np.zeros((2, 2), np.float32)  # not read
    return tensors


@functools.cache
def head_tensors():
    golden = np.load(GOLDEN / 'arrays.npz')
    return {HEAD_NAME.format(i): golden[f'lin{i}'].reshape(1, -1, 1, 1) for i in range(5)}


def narrow_files(folder, monkeypatch):
    """Paths of VGG and heads with four channels a layer, which is what is then expected.

    The real ones take seconds to compile, and are tested in test_lpips.
    """
    blocks = tuple((4,) * len(widths) for widths in lpips_module.BLOCKS)
    for module in (lpips_module, lpips_files):
        monkeypatch.setattr(module, 'BLOCKS', blocks)
    heads = {HEAD_NAME.format(i): np.ones((1, 4, 1, 1), np.float32) for i in range(5)}
    paths = folder / 'vgg.safetensors', folder / 'heads.safetensors'
    for path, tensors in zip(paths, (vgg_tensors.__wrapped__(), heads), strict=True):
        safetensors.numpy.save_file(tensors, path)
    return tuple(map(str, paths))
