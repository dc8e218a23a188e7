"""The programs that a call will need, derived from configurations before a weight is read."""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from infinity_jax.config import ModelConfigs, QuantizationConfig, pixels_per_token, required
from infinity_jax.inference.edit import schedule_for
from infinity_jax.inference.generate import NetworkParams, generate_images, networks_of
from infinity_jax.inference.generator import goes_layerwise
from infinity_jax.inference.given_bits import GivenBits
from infinity_jax.inference.sampling import GenerationSettings, SamplingConfig, SamplingNumbers
from infinity_jax.inference.scale_steps import GenerationInputs, Text
from infinity_jax.inference.source_encoder import encode_images, encoder_params
from infinity_jax.inference.text_encoder import encode, padded_length
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import target_platform
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.transformer.lora import Updates, attach
from infinity_jax.weights.placement import decoder_params, placed_shapes


class Jitted(Protocol):
    """A function that can be called and lowered, of `jax.jit` or a `PlatformJit`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered: ...


class Call(NamedTuple):
    """A call of a jitted function: its static arguments, and shapes instead of the others."""

    function: Jitted
    static: dict[str, Any]
    shapes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """The first call that will be made of a pipeline, announced before the pipeline is loaded.

    Attributes:
      prompts, num, negative, sampling: of the call; of editing by words, `negative` is the prompt
        of the source.
      edited: (height, width) in pixels of the images to edit; None: images are generated.
    """

    prompts: tuple[str, ...]
    num: int = 1
    negative: str | None = None
    sampling: SamplingConfig = SamplingConfig()
    edited: tuple[int, int] | None = None


class BatchShape(NamedTuple):
    """The numbers that the shapes of a batch's inputs depend on.

    Attributes:
      images: in this batch.
      num: images of each prompt, in all batches together.
      text_length: tokens that prompts are padded to, see `padded_length`.
      negative: whether a text replaces the unconditional one.
      edits: whether bits of source images are given.
    """

    images: int
    num: int
    text_length: int
    negative: bool = False
    edits: bool = False


def calls_for(
    request: GenerationRequest,
    configs: ModelConfigs,
    max_batch: int,
    quantization: QuantizationConfig = QuantizationConfig(),
    text_length: int | None = None,
    updates: Updates | None = None,
) -> list[Call]:
    """The calls of the first batch of a request; for the arguments see `calls_of`."""
    images = min(len(request.prompts) * request.num, max_batch)
    schedule = required(configs.schedule, 'schedule')
    if request.edited is not None:
        schedule = schedule_for(request.edited, schedule)
    settings = request.sampling.static(schedule, quantization)
    negative = request.negative is not None and settings.guided
    length = padded_length(required(configs.transformer, 'transformer'), text_length)
    batch = BatchShape(images, request.num, length, negative, request.edited is not None)
    return calls_of(configs, settings, batch, quantization, updates=updates)


def calls_of(
    configs: ModelConfigs,
    settings: GenerationSettings,
    batch: BatchShape,
    quantization: QuantizationConfig = QuantizationConfig(),
    platform: str | None = None,
    updates: Updates | None = None,
) -> list[Call]:
    """The calls that generate one batch on one device: the text encoder, then the images.

    Between them is the image encoder if images are edited. The last is absent where many small
    programs generate, see `goes_layerwise`.

    Args:
      configs: configurations of all three networks.
      settings: the static settings.
      batch: numbers of images and tokens.
      quantization: the format of the weights.
      platform: of the device; None: of the default one.
      updates: those of adapters that are applied next to the kernels.
    """
    config = required(configs.transformer, 'transformer')
    tokenizer = required(configs.tokenizer, 'tokenizer')
    text_config = required(configs.text, 'text encoder')
    texts = batch.images // math.gcd(batch.num, batch.images)
    text = Text(
        _array((texts, batch.text_length, config.text_channels), jnp.float32),
        _array((texts,), jnp.int32),
    )
    encoding = Call(
        encode,
        {'encoder': T5Encoder(text_config, jnp.dtype(configs.text_products))},
        {
            'params': placed_shapes(text_config, configs.text_products),
            'ids_BT': _array((texts, batch.text_length), jnp.int32),
            'lengths_B': text.lengths_B,
        },
    )
    calls = [encoding]
    if batch.edits:
        calls.append(_image_encoding(configs, settings.schedule))
    params = attach(placed_shapes(config, config.dtype, quantization), updates or {})
    on_cpu = (platform or target_platform()) == 'cpu'
    if on_cpu and goes_layerwise(params, settings.int8_cache):
        return calls
    numbers = _array((len(settings.schedule),), jnp.float32)
    decoder = decoder_params(placed_shapes(tokenizer, 'float32'))
    generation = Call(
        generate_images,
        {
            'networks': networks_of(configs, quantization),
            'settings': settings,
        },
        {
            'params': NetworkParams(params, decoder),
            'inputs': GenerationInputs(
                jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch.images)),
                text,
                SamplingNumbers(numbers, numbers),
                text if batch.negative else None,
                _given_bits(configs, settings.schedule, batch.images) if batch.edits else None,
            ),
        },
    )
    return [*calls, generation]


def _array(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shape and dtype in the place of a jax.Array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _image_encoding(configs: ModelConfigs, schedule: ScaleSchedule) -> Call:
    """The call that encodes one source image."""
    config = required(configs.transformer, 'transformer')
    tokenizer = required(configs.tokenizer, 'tokenizer')
    size = schedule.image_size(pixels_per_token(config, tokenizer))
    params = encoder_params(placed_shapes(tokenizer, 'float32'))
    return Call(
        encode_images,
        {'autoencoder': Autoencoder(tokenizer)},
        {'variables': {'params': params}, 'pixels_BYX3': _array((1, *size, 3), jnp.uint8)},
    )


def _given_bits(configs: ModelConfigs, schedule: ScaleSchedule, images: int) -> GivenBits:
    """Shapes of the given bits of a batch."""
    config = required(configs.transformer, 'transformer')
    grids = schedule.code_grids(config.spatial_patchify)
    return GivenBits(
        _array((images, *grids[-1], config.bits), jnp.float32),
        tuple(_array((images, *grid), jnp.bool_) for grid in grids),
        _array((images,), jnp.float32),
    )
