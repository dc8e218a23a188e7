"""VGG-16 of random values as the reference arrays want it, in torchvision's names."""

import functools
import pathlib

import numpy as np

from infinity_jax.tokenizer.perceptual import convolution_shapes
from infinity_jax.weights.perceptual_files import HEAD_NAME, TORCHVISION_INDICES

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'lpips'


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
