"""Measures what rounded convolutions change: grey levels of images, and bits of the encoder.

    python scripts/measure_precision.py [FOLDER] [--count 64]

Emoji images are encoded in float32, and decoded at each precision; then encoded at each precision.
The roundings are emulated on a CPU, see `infinity_jax.tokenizer.precision`.
"""

import argparse
import functools

import jax
import numpy as np

from infinity_jax.config import CONVOLUTION_PRECISIONS, required
from infinity_jax.data.sources.emoji import EmojiSource
from infinity_jax.images import from_uint8, to_uint8
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import quantize
from infinity_jax.weights.model_folder import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', nargs='?', default=DEMO_FOLDER)
    parser.add_argument('--count', type=int, default=64)
    args = parser.parse_args()
    loaded = load_model(args.folder, parts=('tokenizer',))
    config = required(loaded.configs.tokenizer, 'tokenizer')
    schedule = loaded.configs.schedule or ScaleSchedule.for_image(1.0, '0.06M')
    grids = schedule.code_grids(loaded.configs.spatial_patchify)
    edge = grids[-1][0] * config.stride
    source = EmojiSource('demo', image_size=edge)
    images = np.stack([source[i].pixels_YX3 for i in range(args.count)])
    variables = {'params': loaded.tokenizer_params}

    @functools.partial(jax.jit, static_argnums=0)
    def encode(model, pixels):
        features = model.apply(variables, from_uint8(pixels), method=Autoencoder.encode)
        quantized = quantize(features, grids)
        return quantized.bits, quantized.total_Bhwd

    @functools.partial(jax.jit, static_argnums=0)
    def decode(model, total):
        return to_uint8(model.apply(variables, total, method=Autoencoder.decode))

    bits, total = encode(Autoencoder(config), images)
    exact = np.asarray(decode(Autoencoder(config), total), np.int32)
    print(f'{args.folder}: {args.count} images of {edge} x {edge} pixels')
    print('precision     within 1 level   largest   bits flipped by the encoder')
    for name in CONVOLUTION_PRECISIONS:
        model = Autoencoder(config, precision=name)
        off = np.abs(np.asarray(decode(model, total), np.int32) - exact)
        other, _ = encode(model, images)
        flipped = sum(int((a != b).sum()) for a, b in zip(bits, other, strict=True))
        count = sum(each.size for each in bits)
        print(f'{name:<13} {(off <= 1).mean():14.5%} {off.max():9d}   {flipped / count:.2e}')


if __name__ == '__main__':
    main()
