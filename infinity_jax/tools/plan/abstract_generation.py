"""The programs of generation on a mesh of devices that need not exist."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from infinity_jax.config import ModelConfigs
from infinity_jax.inference.scale_steps import Mode
from infinity_jax.inference.warmup import calls_of
from infinity_jax.sharding import batch_sharding, in_mesh, replicated
from infinity_jax.training import loop
from infinity_jax.weights.placement import decoder_params, shardings_on


class AbstractCall(NamedTuple):
    """A jitted call: what lowers it, and its arguments as shapes with shardings."""

    lower: Callable[..., Any]
    arguments: tuple[Any, ...]


def generation_calls(configs: ModelConfigs, mesh: Mesh, batch: int) -> dict[str, AbstractCall]:
    """'text encoder' and 'drawing' of a batch, guided, texts padded to the full length.

    Args:
      loaded: configurations and schedule.
      mesh: images are split over data and fsdp, weights as in training.
      batch: images.
    """
    length = configs.transformer.text_length
    platform = mesh.devices.flat[0].platform
    mode = Mode(guided=True)
    calls = calls_of(configs, configs.schedule, mode, batch, 1, length, platform=platform)
    parts = {
        'params': configs.text,
        'variables': configs.transformer,
        'autoencoder_variables': configs.tokenizer,
    }

    def place(name: str, shapes: Any) -> Any:
        if name in parts:
            shardings = shardings_on(parts[name], mesh)
            if name == 'autoencoder_variables':
                shardings = decoder_params(shardings)
            return loop.with_shardings(
                shapes, {'params': shardings} if name != 'params' else shardings
            )
        of_rows = replicated(mesh) if name == 'controls' else batch_sharding(mesh)
        return jax.tree.map(lambda leaf: _placed(leaf, of_rows), shapes)

    def abstract(call: Any) -> AbstractCall:
        names = tuple(call.shapes)
        lower = lambda *args: call.function.lower(
            **call.static, **dict(zip(names, args, strict=True))
        )
        placed = tuple(place(name, call.shapes[name]) for name in names)
        return AbstractCall(in_mesh(mesh, lower), placed)

    return dict(zip(('text encoder', 'drawing'), map(abstract, calls), strict=True))


def _placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
