"""The stages of generation and of the tokenizer, for `infinity-jax bench`."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infinity_jax.config import TextConfig, required
from infinity_jax.inference import generate
from infinity_jax.inference.generate import NetworkParams, Networks, generate_bits
from infinity_jax.inference.generator import Generator, image_keys
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.scale_steps import GenerationInputs, Text
from infinity_jax.inference.text_encoder import encode
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.sharding import in_mesh
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder, tokenizer_shapes
from infinity_jax.tokenizer.quantizer import quantize
from infinity_jax.tokenizer.tiled_decoder import decode
from infinity_jax.tools.bench.stage import Measured, Stage, measure
from infinity_jax.tools.bench.workload import (
    DEMO,
    Workload,
    check_batch,
    preset,
    random_features,
    random_params,
    schedule_of,
)
from infinity_jax.transformer.model import Transformer, transformer_shapes
from infinity_jax.weights.model_folder import read_configs
from infinity_jax.weights.placement import share_batch
from infinity_jax.weights.t5_folder import encoder_shapes


def bench_generate(workload: Workload, mesh: Mesh | None = None, **options: Any) -> Measured:
    """Measures text encoder, transformer and decoder.

    Args:
      workload: model and images.
      mesh: the devices that share the work; None: the default device.
      options: of `measure`.
    """
    check_batch(workload, mesh)
    stages = text_stage(workload, mesh) if workload.text_encoder else []
    stages += generation_stages(workload, mesh)
    return measure(stages, dtype=workload.precision, **options)


def text_stage(workload: Workload, mesh: Mesh | None = None) -> list[Stage]:
    """The stage from token ids to text features, by a Flan-T5-XL or the demo's encoder."""
    config = TextConfig()
    if workload.preset == DEMO:
        config = required(read_configs(DEMO_FOLDER).text, 'text encoder')
    encoder = T5Encoder(config, jnp.dtype(workload.precision))
    params = random_params(encoder_shapes, config, workload.precision, mesh)
    length = workload.text_length
    if workload.preset == DEMO:
        length = min(length, preset(DEMO, workload.precision)[0].text_length)
    ids_BT = share_batch(np.ones((workload.batch, length), np.int32), mesh)
    lengths_B = share_batch(np.full((workload.batch,), length, np.int32), mesh)

    def run(params, ids_BT, lengths_B):
        return encode(encoder, params, ids_BT, lengths_B)

    return [Stage.of('text', _on(mesh, run), run, params, ids_BT, lengths_B)]


def _on(mesh: Mesh | None, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` under the mesh, if there is one."""
    return run if mesh is None else in_mesh(mesh, run)


def generation_stages(workload: Workload, mesh: Mesh | None = None) -> list[Stage]:
    """The stages from text features to accumulated codes and from codes to images."""
    config, tokenizer = preset(workload.preset, workload.precision)
    schedule = schedule_of(workload)
    model, autoencoder = Transformer(config, workload.attention), Autoencoder(tokenizer)
    params = random_params(transformer_shapes, config, workload.precision, mesh)
    decoder = random_params(tokenizer_shapes, tokenizer, mesh=mesh)
    generator = Generator(Networks(model, autoencoder), NetworkParams(params, decoder), mesh)
    batch = workload.batch
    length = min(workload.text_length, config.text_length)
    lengths_B = np.full((batch,), length, np.int32)
    features_BTE = random_features((batch, length, config.text_channels))
    text = Text(*share_batch((features_BTE, lengths_B), mesh))
    seeds_B2 = np.array([(0, i) for i in range(batch)], np.uint32)
    keys_B = image_keys(share_batch(seeds_B2, mesh))
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
    total_Bhwd = share_batch(random_features((batch, *grid, config.bits)), mesh)

    return [
        Stage.of('transformer', _on(mesh, run), plain, inputs),
        Stage.of('decoder', _on(mesh, generator.decode), plain_decode, total_Bhwd),
    ]


def bench_tokenizer(workload: Workload, mesh: Mesh | None = None, **options: Any) -> Measured:
    """Measures encoder (images to bits) and decoder; arguments as in `bench_generate`."""
    check_batch(workload, mesh)
    config, tokenizer = preset(workload.preset, workload.precision)
    schedule = schedule_of(workload)
    grids = schedule.code_grids(config.spatial_patchify)
    autoencoder = Autoencoder(tokenizer)
    variables = {'params': random_params(tokenizer_shapes, tokenizer, mesh=mesh)}
    h, w = grids[-1]
    stride = tokenizer.stride
    pixels_BYX3 = share_batch(random_features((workload.batch, h * stride, w * stride, 3)), mesh)
    total_Bhwd = share_batch(random_features((workload.batch, h, w, config.bits)), mesh)

    @jax.jit
    def encode(variables, pixels_BYX3):
        features = autoencoder.apply(variables, pixels_BYX3, method=Autoencoder.encode)
        return quantize(cast(jax.Array, features), grids).bits

    def run_decoder(variables, total_Bhwd):
        return generate.decode(autoencoder, variables, total_Bhwd)

    def plain_decoder(variables, total_Bhwd):
        return decode(autoencoder, variables, total_Bhwd)

    stages = [
        Stage.of('encoder', _on(mesh, encode), encode, variables, pixels_BYX3),
        Stage.of('decoder', _on(mesh, run_decoder), plain_decoder, variables, total_Bhwd),
    ]
    return measure(stages, dtype='float32', **options)
