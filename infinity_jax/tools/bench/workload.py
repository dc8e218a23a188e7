"""The workload of `infinity-jax bench`: a preset with random weights, and image size and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax.config import (
    PRESETS,
    TokenizerConfig,
    TransformerConfig,
    released_tokenizer,
    required,
)
from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.scales import ScaleSchedule
from infinity_jax.weights.model_folder import read_configs
from infinity_jax.weights.placement import device_dtype

DEMO = (
    'demo'  # the model that the package ships, with its text encoder and its grids; training only
)
BLOCK = np.random.default_rng(0).standard_normal(2**20, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Workload:
    """The model and the images of a measurement.

    Attributes:
      preset: of the transformer.
      ratio: height / width of the images.
      budget: pixels of the images.
      batch: images per call, of different prompts.
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


def preset(name: str, precision: str) -> tuple[TransformerConfig, TokenizerConfig]:
    """The transformer of a preset, and the released tokenizer of its code bits.

    Raises:
      UserError: no such preset.
    """
    if name not in PRESETS:
        raise UserError(f'unknown preset {name!r}; choose one of {", ".join(PRESETS)}')
    transformer = dataclasses.replace(PRESETS[name], dtype=precision)
    return transformer, released_tokenizer(transformer)


def schedule_of(workload: Workload) -> ScaleSchedule:
    """The token grids of the images; the demo's are those that it was trained on."""
    if workload.preset == DEMO:
        return required(read_configs(DEMO_FOLDER).schedule, 'schedule')
    return ScaleSchedule.for_image(workload.ratio, workload.budget)


def random_params(
    shapes: Callable[[Any], Any], config: Any, product_dtype: str = 'float32'
) -> dict[str, Any]:
    """Parameters on the device, in the dtypes of generation.

    They keep the size of signals, as trained ones do, so that no number overflows or becomes
    denormal, which would change the speed.
    """

    def fill(path: tuple[str, ...], leaf: Any) -> jax.Array:
        values = np.resize(BLOCK, leaf.shape)
        fan_in = int(np.prod(leaf.shape[-4:-1])) if path[-1] == 'kernel' else 100
        scaled = values * np.float32(fan_in**-0.5)
        return jnp.asarray(scaled, device_dtype(path, product_dtype))

    def stacked(path: tuple[str, ...], leaf: Any) -> jax.Array:
        # The stacked axis of layers does not count in a kernel's fan-in.
        inner = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        return jnp.broadcast_to(fill(path, inner)[None], leaf.shape)

    return unflatten_dict(
        {
            path: (stacked if path[0] in ('blocks', 'layers') else fill)(path, leaf)
            for path, leaf in flatten_dict(shapes(config)).items()
        }
    )


def random_features(shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers, float32."""
    return jnp.asarray(np.resize(BLOCK, shape))
