"""The stages of generation and of the tokenizer, for `infinity-jax bench`."""

from typing import Any, cast

import jax
import jax.numpy as jnp

from infinity_jax.config import TextConfig
from infinity_jax.inference import generate
from infinity_jax.inference.generate import NetworkParams, Networks, generate_bits
from infinity_jax.inference.generator import Generator
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.scale_steps import GenerationInputs, Text
from infinity_jax.inference.text_encoder import encode
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder, tokenizer_shapes
from infinity_jax.tokenizer.quantizer import quantize
from infinity_jax.tokenizer.tiled_decoder import decode
from infinity_jax.tools.bench.stage import Measured, Stage, measure
from infinity_jax.tools.bench.workload import Workload, preset, random_features, random_params
from infinity_jax.transformer.model import Transformer, transformer_shapes
from infinity_jax.weights.t5_folder import encoder_shapes


def bench_generate(workload: Workload, **options: Any) -> Measured:
    """Measures text encoder, transformer and decoder; `options` are those of `measure`."""
    stages = text_stage(workload) if workload.text_encoder else []
    stages += generation_stages(workload)
    return measure(stages, dtype=workload.precision, **options)


def text_stage(workload: Workload) -> list[Stage]:
    """The stage from token ids to text features, by an encoder of the size of Flan-T5-XL."""
    config = TextConfig()
    encoder = T5Encoder(config, jnp.dtype(workload.precision))
    params = random_params(encoder_shapes, config, workload.precision)
    ids_BT = jnp.ones((workload.batch, workload.text_length), jnp.int32)
    lengths_B = jnp.full((workload.batch,), workload.text_length, jnp.int32)

    def run(params, ids_BT, lengths_B):
        return encode(encoder, params, ids_BT, lengths_B)

    return [Stage.of('text', run, run, params, ids_BT, lengths_B)]


def generation_stages(workload: Workload) -> list[Stage]:
    """The stages from text features to accumulated codes and from codes to images."""
    config, tokenizer = preset(workload.preset, workload.precision)
    schedule = ScaleSchedule.for_image(workload.ratio, workload.budget)
    model, autoencoder = Transformer(config), Autoencoder(tokenizer)
    params = random_params(transformer_shapes, config, workload.precision)
    decoder = random_params(tokenizer_shapes, tokenizer)
    generator = Generator(Networks(model, autoencoder), NetworkParams(params, decoder))
    batch = workload.batch
    shape = (batch, workload.text_length, config.text_channels)
    text = Text(random_features(shape), jnp.full((batch,), workload.text_length, jnp.int32))
    keys_B = jax.random.split(jax.random.key(0), batch)
    sampling = SamplingConfig(guidance=workload.guidance)
    inputs = GenerationInputs(keys_B, text, sampling.traced(schedule))
    settings = sampling.static(schedule)

    def run(inputs):
        return generator.codes(inputs, settings)

    def plain(inputs):
        return generate_bits(model, {'params': params}, inputs, settings).total_Bhwd

    def plain_decode(total_Bhwd):
        return decode(autoencoder, {'params': decoder}, total_Bhwd)

    grid = schedule.code_grids(config.spatial_patchify)[-1]
    total_Bhwd = random_features((batch, *grid, config.bits))

    return [
        Stage.of('transformer', run, plain, inputs),
        Stage.of('decoder', generator.decode, plain_decode, total_Bhwd),
    ]


def bench_tokenizer(workload: Workload, **options: Any) -> Measured:
    """Measures encoder (images to bits) and decoder; `options` are those of `measure`."""
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
        return quantize(cast(jax.Array, features), grids).bits

    def run_decoder(variables, total_Bhwd):
        return generate.decode(autoencoder, variables, total_Bhwd)

    def plain_decoder(variables, total_Bhwd):
        return decode(autoencoder, variables, total_Bhwd)

    stages = [
        Stage.of('encoder', encode, encode, variables, pixels_BYX3),
        Stage.of('decoder', run_decoder, plain_decoder, variables, total_Bhwd),
    ]
    return measure(stages, dtype='float32', **options)
