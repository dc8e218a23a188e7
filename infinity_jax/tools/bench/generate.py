"""The stages of drawing, for `infinity-jax bench generate`: text, transformer, decoder."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from infinity_jax.config import TextConfig
from infinity_jax.inference.generate import generate_bits
from infinity_jax.inference.generator import Generator
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.scale_steps import Mode, Text, controls
from infinity_jax.inference.text_encoder import encode
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder, tokenizer_shapes
from infinity_jax.tokenizer.tiled_decoder import decode
from infinity_jax.tools.bench.models import preset, random_features, random_params
from infinity_jax.tools.bench.stage import Measured, Stage, measure
from infinity_jax.transformer.model import Transformer, transformer_shapes
from infinity_jax.weights.t5_folder import encoder_shapes


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is drawn.

    Attributes:
      preset: of the transformer.
      ratio, budget: of the images.
      batch: images at once, of different prompts.
      precision: of the products in blocks and text encoder; the tokenizer runs in float32.
      guidance: 1 leaves out the unconditional half.
      text_length: tokens that prompts are padded to.
      text_encoder: whether Flan-T5-XL is measured as well.
    """

    preset: str
    ratio: str
    budget: str
    batch: int
    precision: str
    guidance: float
    text_length: int
    text_encoder: bool = True


def bench_generate(workload: Workload, **options: Any) -> Measured:
    """Measures the stages; `options` are those of `measure`."""
    stages = text_stage(workload) if workload.text_encoder else []
    stages += generation_stages(workload)
    return measure(stages, dtype=workload.precision, **options)


def text_stage(workload: Workload) -> list[Stage]:
    """Token ids to features by an encoder of the size of Flan-T5-XL."""
    config = TextConfig()
    encoder = T5Encoder(config, jnp.dtype(workload.precision))
    params = random_params(encoder_shapes, config, workload.precision)
    ids_BT = jnp.ones((workload.batch, workload.text_length), jnp.int32)
    lengths_B = jnp.full((workload.batch,), workload.text_length, jnp.int32)

    def run(params, ids_BT, lengths_B):
        return encode(encoder, params, ids_BT, lengths_B)

    return [Stage.of('text', run, run, params, ids_BT, lengths_B)]


def generation_stages(workload: Workload) -> list[Stage]:
    """Text features to accumulated codes, and these to images, each as drawing runs them."""
    config, tokenizer = preset(workload.preset, workload.precision)
    schedule = ScaleSchedule.for_image(workload.ratio, workload.budget)
    model, autoencoder = Transformer(config), Autoencoder(tokenizer)
    params = random_params(transformer_shapes, config, workload.precision)
    decoder = random_params(tokenizer_shapes, tokenizer)
    drawing = Generator(model, autoencoder, params, decoder)
    batch = workload.batch
    shape = (batch, workload.text_length, config.text_channels)
    text = Text(random_features(shape), jnp.full((batch,), workload.text_length, jnp.int32))
    keys_B = jax.random.split(jax.random.key(0), batch)
    numbers = controls(SamplingConfig(guidance=(workload.guidance,)), schedule)
    mode = Mode(guided=workload.guidance != 1)

    def run(keys_B, text, numbers):
        return drawing.codes(keys_B, text, numbers, schedule, mode=mode)

    def plain(keys_B, text, numbers):
        return generate_bits(
            model,
            {'params': params},
            keys_B,
            text,
            numbers,
            schedule,
            guided=mode.guided,
        ).total_Bhwd

    def plain_decode(total_Bhwd):
        return decode(autoencoder, {'params': decoder}, total_Bhwd)

    grid = schedule.code_grids(config.spatial_patchify)[-1]
    total_Bhwd = random_features((batch, *grid, config.bits))

    return [
        Stage.of('transformer', run, plain, keys_B, text, numbers),
        Stage.of('decoder', drawing.decode, plain_decode, total_Bhwd),
    ]
