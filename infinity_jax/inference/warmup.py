"""The programs that a call will need, known from configurations before a weight is read."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infinity_jax.config import ModelConfigs, QuantizationConfig
from infinity_jax.inference.generate import generate_images
from infinity_jax.inference.generator import goes_layerwise, static_arguments
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.scale_steps import Controls, Mode, Text
from infinity_jax.inference.text_encoder import encode, padded_length
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import target_platform
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.transformer.model import Transformer
from infinity_jax.weights.placement import decoder_params, placed_shapes


class Call(NamedTuple):
    """A call of a jitted function: its static arguments, and shapes instead of the others."""

    function: Callable[..., Any]
    static: dict[str, Any]
    shapes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """What a pipeline will be asked for first, told before it is loaded."""

    prompts: tuple[str, ...]
    num: int = 1
    negative: str | None = None
    sampling: SamplingConfig = SamplingConfig()


def mode_of(sampling: SamplingConfig, quantization: QuantizationConfig) -> Mode:
    """What is static of these settings; a guidance of 1 everywhere needs no unconditional half."""
    guided = any(g != 1 for g in sampling.guidance)
    return Mode(guided, sampling.guidance_layer, sampling.top_k, sampling.top_p, quantization)


def calls_for(
    request: Request,
    configs: ModelConfigs,
    schedule: ScaleSchedule,
    max_batch: int,
    quantization: QuantizationConfig = QuantizationConfig(),
    text_length: int | None = None,
) -> list[Call]:
    """What the first batch of a request will call; see `calls_of`."""
    prompts = [prompt for prompt in request.prompts for _ in range(request.num)]
    batch = min(len(prompts), max_batch)
    mode = mode_of(request.sampling, quantization)
    negative = request.negative if mode.guided else None
    length = padded_length(configs.transformer, text_length)
    return calls_of(configs, schedule, mode, batch, request.num, length, negative is not None)


def calls_of(
    configs: ModelConfigs,
    schedule: ScaleSchedule,
    mode: Mode,
    batch: int,
    num: int,
    length: int,
    negative: bool = False,
    platform: str | None = None,
) -> list[Call]:
    """What drawing one batch on one device will call: the text encoder, then the drawing.

    The drawing is left out where many small programs draw, see `goes_layerwise`.

    Args:
      configs: configurations; weights are not looked at.
      schedule: the token grids.
      mode: what is static of the settings.
      batch: images.
      num: images of each prompt, in all batches together.
      length: tokens that prompts are padded to, see `padded_length`.
      negative: whether a text replaces the unconditional one.
      platform: of the device; None: of the default one.
    """
    config = configs.transformer

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    texts = batch // math.gcd(num, batch)
    text = Text(
        array((texts, length, config.text_channels), jnp.float32), array((texts,), jnp.int32)
    )
    encoding = Call(
        encode,
        {'encoder': T5Encoder(configs.text, jnp.dtype(config.dtype))},
        {
            'params': placed_shapes(configs.text, config.dtype),
            'ids_BT': array((texts, length), jnp.int32),
            'lengths_B': text.lengths_B,
        },
    )
    params = placed_shapes(config, config.dtype, mode.quantization)
    if (platform or target_platform()) == 'cpu' and goes_layerwise(params, mode.quantization):
        return [encoding]
    model, autoencoder = Transformer(config), Autoencoder(configs.tokenizer)
    numbers = array((len(schedule),), jnp.float32)
    drawing = Call(
        generate_images,
        static_arguments(model, autoencoder, schedule, mode),
        {
            'variables': {'params': params},
            'autoencoder_variables': {
                'params': decoder_params(placed_shapes(configs.tokenizer, 'float32'))
            },
            'keys_B': jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)),
            'text': text,
            'controls': Controls(numbers, numbers),
            'negative': text if negative else None,
        },
    )
    return [encoding, drawing]
