"""The programs of generation, lowered for a mesh of devices that need not exist."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from infinity_jax.config import ModelConfigs
from infinity_jax.inference.scale_steps import Mode
from infinity_jax.inference.warmup import calls_of
from infinity_jax.sharding import batch_sharding, in_mesh, replicated
from infinity_jax.tools.plan.program_cost import AbstractProgram
from infinity_jax.training import loop
from infinity_jax.weights.placement import decoder_params, shardings_on


def generation_programs(configs: ModelConfigs, mesh: Mesh, batch: int) -> list[AbstractProgram]:
    """The text encoder and the generation of a batch, guided, texts padded to the full length.

    Args:
      configs: of the model.
      mesh: images are split over data and fsdp, weights as in training.
      batch: images on all devices.
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
        sharding = replicated(mesh) if name == 'controls' else batch_sharding(mesh)
        return jax.tree.map(lambda leaf: _placed(leaf, sharding), shapes)

    def abstract(call: Any) -> AbstractProgram:
        names = tuple(call.shapes)
        lower = lambda *args: call.function.lower(
            **call.static, **dict(zip(names, args, strict=True))
        )
        placed = tuple(place(name, call.shapes[name]) for name in names)
        return AbstractProgram(in_mesh(mesh, lower), placed)

    return [abstract(call) for call in calls]


def _placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
