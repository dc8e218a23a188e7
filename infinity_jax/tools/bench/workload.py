"""The workload of `infinity-jax bench`: a preset with random weights, and image size and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

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
from infinity_jax.weights.placement import STACKS, device_dtype, shardings_on

DEMO = 'demo'  # the model that the package ships, with its text encoder and its grids
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
      attention: see `attention_choice.choose`.
      lora: rank of adapters that are trained instead of the transformer; 0: none.
      remat: what the gradient recomputes, see `remat.POLICIES`.
    """

    preset: str
    ratio: str
    budget: str
    batch: int
    precision: str
    guidance: float
    text_length: int
    text_encoder: bool = True
    attention: str = 'auto'
    lora: int = 0
    remat: str = 'none'


def preset(name: str, precision: str) -> tuple[TransformerConfig, TokenizerConfig]:
    """The transformer of a preset, and the released tokenizer of its code bits; or the demo's.

    Raises:
      UserError: no such preset.
    """
    if name == DEMO:
        demo = read_configs(DEMO_FOLDER)
        transformer = required(demo.transformer, 'transformer')
        tokenizer = required(demo.tokenizer, 'tokenizer')
        return dataclasses.replace(transformer, dtype=precision), tokenizer
    if name not in PRESETS:
        raise UserError(f'unknown preset {name!r}; choose one of {", ".join(PRESETS)}, {DEMO}')
    transformer = dataclasses.replace(PRESETS[name], dtype=precision)
    return transformer, released_tokenizer(transformer)


def schedule_of(workload: Workload) -> ScaleSchedule:
    """The token grids of the images; the demo's are those that it was trained on."""
    if workload.preset == DEMO:
        return required(read_configs(DEMO_FOLDER).schedule, 'schedule')
    return ScaleSchedule.for_image(workload.ratio, workload.budget)


def random_params(
    shapes: Callable[[Any], Any],
    config: Any,
    product_dtype: str = 'float32',
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Parameters on the devices, in the dtypes of generation.

    They keep the size of signals, as trained ones do, so that no number overflows or becomes
    denormal, which would change the speed. All layers have the same ones.
    """
    leaves = flatten_dict(shapes(config))

    def values(path: tuple[str, ...], leaf: Any) -> np.ndarray:
        # The stacked axis of layers does not count in a kernel's fan-in.
        shape = leaf.shape[1:] if path[0] in STACKS else leaf.shape
        fan_in = int(np.prod(shape[-4:-1])) if path[-1] == 'kernel' else 100
        return np.resize(BLOCK, shape) * np.float32(fan_in**-0.5)

    def spread(of_a_layer: dict[tuple[str, ...], np.ndarray]) -> dict[tuple[str, ...], jax.Array]:
        stacked = {}
        for path, array in of_a_layer.items():
            typed = jnp.asarray(array, device_dtype(path, product_dtype))
            typed = typed[None] if path[0] in STACKS else typed
            stacked[path] = jnp.broadcast_to(typed, leaves[path].shape)
        return stacked

    if mesh is not None:
        spread = jax.jit(spread, out_shardings=flatten_dict(shardings_on(config, mesh)))
    return unflatten_dict(spread({path: values(path, leaf) for path, leaf in leaves.items()}))


def check_batch(workload: Workload, mesh: Mesh | None) -> None:
    """Raises `UserError` if the devices cannot have equal shares of a batch."""
    shares = 1 if mesh is None else mesh.shape['data'] * mesh.shape['fsdp']
    if workload.batch % shares:
        raise UserError(
            f'--batch is {workload.batch}; wanted a multiple of {shares}, for {shares} shares'
        )


def random_features(shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers, float32, on the host."""
    return np.resize(BLOCK, shape)
