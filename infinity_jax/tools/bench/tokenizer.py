"""The stages of the tokenizer, for `infinity-jax bench tokenizer`: encoder and decoder."""

from typing import Any

import jax

from infinity_jax.inference import generate
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.autoencoder import Autoencoder, tokenizer_shapes
from infinity_jax.tokenizer.quantizer import quantize
from infinity_jax.tokenizer.tiled_decoder import decode
from infinity_jax.tools.bench.generate import Workload
from infinity_jax.tools.bench.models import preset, random_features, random_params
from infinity_jax.tools.bench.stage import Measured, Stage, measure


def bench_tokenizer(workload: Workload, **options: Any) -> Measured:
    """Measures images to bits, and codes to images; `options` are those of `measure`."""
    config, tokenizer = preset(workload.preset, workload.precision)
    schedule = ScaleSchedule.for_image(workload.ratio, workload.budget)
    grids = schedule.code_grids(config.spatial_patchify)
    autoencoder = Autoencoder(tokenizer)
    variables = {'params': random_params(tokenizer_shapes, tokenizer)}
    h, w = grids[-1]
    stride = tokenizer.stride
    pixels_BYX3 = random_features((workload.batch, h * stride, w * stride, 3))
    total_Bhwd = random_features((workload.batch, h, w, config.bits))

    @jax.jit
    def encode(variables, pixels_BYX3):
        features = autoencoder.apply(variables, pixels_BYX3, method=Autoencoder.encode)
        return quantize(features, grids).bits

    def draw(variables, total_Bhwd):
        return generate.decode(autoencoder, variables, total_Bhwd)

    def plain_draw(variables, total_Bhwd):
        return decode(autoencoder, variables, total_Bhwd)

    stages = [
        Stage.of('encoder', encode, encode, variables, pixels_BYX3),
        Stage.of('decoder', draw, plain_draw, variables, total_Bhwd),
    ]
    return measure(stages, dtype='float32', **options)
