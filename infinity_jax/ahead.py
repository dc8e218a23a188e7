"""The programs that a call will need, known from configurations before a weight is read."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infinity_jax.economy import Economy
from infinity_jax.generate import Controls, Text, draw_pictures
from infinity_jax.model_folder import ModelBundle
from infinity_jax.placement import drawing_half, placed_shapes
from infinity_jax.prompt_encoder import encode
from infinity_jax.sampling import SamplingConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.t5 import T5Encoder
from infinity_jax.text import TextTokenizer, common_length
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.transformer.model import Transformer


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


def is_guided(sampling: SamplingConfig) -> bool:
    """Whether guidance does anything, so that the unconditional half must run."""
    return any(g != 1 for g in sampling.guidance)


def drawing_static(
    model: Transformer,
    autoencoder: Autoencoder,
    schedule: ScaleSchedule,
    sampling: SamplingConfig,
    economy: Economy,
) -> dict[str, Any]:
    """The static arguments of `draw_pictures`."""
    return {
        'model': model,
        'autoencoder': autoencoder,
        'schedule': schedule,
        'guided': is_guided(sampling),
        'guidance_layer': sampling.guidance_layer,
        'top_k': sampling.top_k,
        'top_p': sampling.top_p,
        'economy': economy,
    }


def calls_for(
    request: Request,
    bundle: ModelBundle,
    schedule: ScaleSchedule,
    batch: int,
    tokenizer: TextTokenizer,
    economy: Economy = Economy(),
) -> list[Call]:
    """What the first batch of a request will call; see `calls_of`."""
    prompts = [prompt for prompt in request.prompts for _ in range(request.num)]
    sampling = request.sampling
    negative = request.negative if is_guided(sampling) else None
    texts = prompts[:batch] + ([] if negative is None else [negative])
    length = common_length(tokenizer, texts, bundle.transformer_config.text_length)
    size = min(len(prompts), batch)
    return calls_of(bundle, schedule, sampling, size, length, negative is not None, economy)


def calls_of(
    bundle: ModelBundle,
    schedule: ScaleSchedule,
    sampling: SamplingConfig,
    batch: int,
    length: int,
    negative: bool = False,
    economy: Economy = Economy(),
) -> list[Call]:
    """What drawing one batch will call: the text encoder, then the drawing.

    Args:
      bundle: configurations; weights are not looked at.
      schedule: the token grids.
      sampling: its numbers do not matter, except a guidance of 1 everywhere.
      batch: pictures.
      length: tokens that prompts are padded to, see `padded_length`.
      negative: whether a text replaces the unconditional one.
      economy: what is saved.
    """
    config = bundle.transformer_config

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    text = Text(
        array((batch, length, config.text_channels), jnp.float32), array((batch,), jnp.int32)
    )
    encoding = Call(
        encode,
        {'encoder': T5Encoder(bundle.text_config, jnp.dtype(config.dtype))},
        {
            'params': placed_shapes(bundle.text_config, config.dtype),
            'ids_BT': array((batch, length), jnp.int32),
            'lengths_B': text.lengths_B,
        },
    )
    model, autoencoder = Transformer(config), Autoencoder(bundle.tokenizer_config)
    numbers = array((len(schedule),), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    drawing = Call(
        draw_pictures,
        drawing_static(model, autoencoder, schedule, sampling, economy),
        {
            'variables': {'params': placed_shapes(config, config.dtype, economy)},
            'autoencoder_variables': {
                'params': drawing_half(placed_shapes(bundle.tokenizer_config, 'float32'))
            },
            'keys_B': keys,
            'text': text,
            'controls': Controls(numbers, numbers),
            'negative': text if negative and is_guided(sampling) else None,
        },
    )
    return [encoding, drawing]
