"""The programs of generation, lowered for a mesh of devices that need not exist."""

from typing import Any

import jax
from jax.sharding import Mesh

from infinity_jax.config import ModelConfigs
from infinity_jax.inference.generate import NetworkParams
from infinity_jax.inference.sampling import GenerationSettings
from infinity_jax.inference.warmup import BatchShape, Call, calls_of
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
    platform = mesh.devices.flat[0].platform
    settings = GenerationSettings(configs.schedule)
    shape = BatchShape(batch, num=1, text_length=configs.transformer.text_length)
    encoding, *generation = calls_of(configs, settings, shape, platform=platform)
    rows = batch_sharding(mesh)

    def abstract(call: Call, shardings: dict[str, Any]) -> AbstractProgram:
        names = tuple(call.shapes)
        lower = lambda *args: call.function.lower(
            **call.static, **dict(zip(names, args, strict=True))
        )
        placed = tuple(loop.with_shardings(call.shapes[name], shardings[name]) for name in names)
        return AbstractProgram(in_mesh(mesh, lower), placed)

    programs = [
        abstract(
            encoding,
            {'params': shardings_on(configs.text, mesh), 'ids_BT': rows, 'lengths_B': rows},
        )
    ]
    for call in generation:
        inputs = jax.tree.map(lambda _: rows, call.shapes['inputs'])
        numbers = jax.tree.map(lambda _: replicated(mesh), inputs.numbers)
        params = NetworkParams(
            shardings_on(configs.transformer, mesh),
            decoder_params(shardings_on(configs.tokenizer, mesh)),
        )
        programs.append(
            abstract(call, {'params': params, 'inputs': inputs._replace(numbers=numbers)})
        )
    return programs
