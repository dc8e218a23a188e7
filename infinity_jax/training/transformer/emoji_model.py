"""A model of the embedded emoji, ready to be judged."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from infinity_jax.config import QuantizationConfig, required
from infinity_jax.emoji.artwork import subset as emoji_subset
from infinity_jax.emoji.matcher import EVALUATED_PLACED_RATE
from infinity_jax.errors import UserError
from infinity_jax.inference.loading import with_adapters
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.sharding import lack_of_bfloat16
from infinity_jax.weights.adapter_file import read_updates
from infinity_jax.weights.model_folder import LoadedModel, load_model
from infinity_jax.weights.placement import on_card, place_model

BATCH = 50  # images in one call


class EmojiModel(NamedTuple):
    """A model, and the emoji that its images may show.

    Attributes:
      loaded: configurations and weights as stored, without adapters.
      pipeline: generates, with adapters.
      subset: emoji of the captions.
      candidates: their names, which the matcher chooses from.
      placed_rate: share of the captions with a size and a place, see `evaluated_placed_rate`.
    """

    loaded: LoadedModel
    pipeline: InfinityPipeline
    subset: str
    candidates: list[str]
    placed_rate: float


def open_emoji_model(
    folder: str | os.PathLike,
    *,
    count: int,
    subset: str | None,
    subset_fields: Sequence[str] = ('subset',),
    quantization: QuantizationConfig = QuantizationConfig(),
    mesh: Mesh | None = None,
    adapters: Sequence[str] = (),
) -> EmojiModel:
    """Reads a model folder for an evaluation.

    Args:
      folder: a complete model folder.
      count: images of each kind.
      subset: emoji to judge; None: those that the model was trained on.
      subset_fields: names of the fields of its run that say which, the first that is set.
      quantization: the formats of weights and cache.
      mesh: the devices that share the generation; None: the default device.
      adapters: LoRA adapters of the model, see `Adapter.parse`.

    Raises:
      UserError: no image is asked for, the folder is no model, the subset is unknown, or adapters
        do not fit.
    """
    if count < 1:
        raise UserError(f'count is {count}; wanted 1 or more of each kind')
    loaded = load_model(folder)
    data = loaded.configs.training_data
    subset = subset or next((data[name] for name in subset_fields if data.get(name)), 'all')
    names = [each.name for each in emoji_subset(subset)]
    # Adapters are merged in the precision that the card has.
    loaded = dataclasses.replace(loaded, configs=on_card(loaded.configs, lack_of_bfloat16(mesh)))
    updates = read_updates(adapters, required(loaded.configs.transformer, 'transformer'))
    adapted = with_adapters(loaded, updates, quantization, mesh)
    placed = place_model(adapted, quantization, mesh)
    pipeline = InfinityPipeline(placed, max_batch=min(count, BATCH))
    return EmojiModel(loaded, pipeline, subset, names, evaluated_placed_rate(data))


def evaluated_placed_rate(data: Mapping[str, Any]) -> float:
    """Share of the captions with a size and place: none for a model trained on large emoji alone.

    Args:
      data: the fields `data` of the run that trained the model, or none.
    """
    return EVALUATED_PLACED_RATE if data.get('placed_rate', True) else 0.0
