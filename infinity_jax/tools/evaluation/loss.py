"""Validation loss and bit accuracy of a finished model on a run's held-out data."""

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import pixels_per_token, required
from infinity_jax.errors import UserError
from infinity_jax.scales import BUDGET_OF_EDGE, ScaleSchedule, released_name
from infinity_jax.sharding import in_mesh, lack_of_bfloat16, make_mesh, replicated
from infinity_jax.training.accumulate import check_parts
from infinity_jax.training.batches import check_batch, first_batches, put_batch
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.training.transformer.features import check_features
from infinity_jax.training.transformer.parts import with_run_text_dtype
from infinity_jax.training.transformer.step import evaluation_step, make_models
from infinity_jax.transformer.lora import LoraConfig
from infinity_jax.weights.model_folder import load_model
from infinity_jax.weights.placement import on_card


def evaluate_loss(
    folder: str | os.PathLike, config: T2IConfig, *, num_batches: int
) -> dict[str, Any]:
    """Prints loss and bit accuracy, over all scales and by scale, computed as in training.

    Args:
      folder: a complete model folder.
      config: a run; its held-out data, batch size, self-correction and weights of scales are
        used, and the sizes of networks are the model's own.
      num_batches: number of held-out batches, from the first on.

    Returns:
      means over images, by their names in the training log.

    Raises:
      UserError: the model is incomplete, or its images have another size than `config.data`.
    """
    if num_batches < 1:
        raise UserError(f'--batches is {num_batches}; wanted 1 or more')
    mesh = make_mesh(config.mesh)
    loaded = load_model(folder, mesh=mesh)
    configs = loaded.configs
    budget = BUDGET_OF_EDGE.get(config.data.image_size)
    if budget and (configs.schedule is None or released_name(configs.schedule)):
        # The folder of a released model names no grids, or the grids that it was last trained on.
        configs = dataclasses.replace(configs, schedule=ScaleSchedule.for_image(1.0, budget))
    parts: dict[str, Any] = {'schedule': configs.schedule}
    parts |= {n: getattr(loaded, f'{n}_params') for n in ('transformer', 'tokenizer', 'text')}
    for part, value in parts.items():
        if value is None:
            raise UserError(f'{folder} has no {part}; the loss needs a complete model folder')
    configs = on_card(configs, lack_of_bfloat16(mesh))
    transformer = required(configs.transformer, 'transformer')
    tokenizer = required(configs.tokenizer, 'tokenizer')
    stride = pixels_per_token(transformer, tokenizer)
    size = required(configs.schedule, 'schedule').image_size(stride)
    if size != (config.data.image_size,) * 2:
        raise UserError(
            f'{folder} generates images of {size}, but data.image_size is '
            f'{config.data.image_size}; name the config that the model was trained with'
        )
    # The adapters of the run are not part of this model.
    config = dataclasses.replace(config, transformer=transformer, lora=LoraConfig())
    check_features(config, loaded)
    configs = with_run_text_dtype(config, configs, mesh)
    models = make_models(config, configs)
    check_batch(config, mesh)
    check_parts(config.batch_size, config.accumulate_steps, mesh)
    params = {'transformer': loaded.transformer_params, 'text': loaded.text_params}
    frozen = {'tokenizer': loaded.tokenizer_params}
    step = jax.jit(
        functools.partial(evaluation_step, models=models, config=config),
        out_shardings=replicated(mesh),
    )
    batches = first_batches(
        config,
        'held_out',
        num_batches,
        text_tokenizer=loaded.text_tokenizer,
        text_length=transformer.text_length,
    )
    evaluate = in_mesh(mesh, step)
    metrics = [
        jax.device_get(evaluate(params, frozen, put_batch(batch, mesh), jnp.int32(i)))
        for i, batch in enumerate(batches)
    ]
    means = jax.tree.map(lambda *values: np.mean(values, axis=0), *metrics)
    grids = models.schedules[0].grids
    print(table(means, grids, num_batches * config.batch_size))
    return means


def table(means: dict[str, Any], grids: tuple[tuple[int, int], ...], images: int) -> str:
    """The figures as text; `majority` is the accuracy of guessing the more frequent value."""
    lines = [
        f'{images} held-out images',
        f'{"grid":>10}{"loss":>10}{"accuracy":>10}{"majority":>10}',
    ]
    columns = [means[f'{name}_per_scale'] for name in ('loss', 'accuracy', 'majority_rate')]
    for (h, w), *values in zip(grids, *columns, strict=True):
        lines.append(f'{f"{h} x {w}":>10}' + ''.join(f'{value:>10.4f}' for value in values))
    total = [means[name] for name in ('loss', 'accuracy', 'majority_rate')]
    lines.append(f'{"all":>10}' + ''.join(f'{value:>10.4f}' for value in total))
    return '\n'.join(lines)
