"""The batches of a run: read by its data configuration, and put on the devices."""

import dataclasses
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from infinity_jax.data.batch import Batch
from infinity_jax.data.config import DataConfig
from infinity_jax.data.pipeline import Batches, training_batches
from infinity_jax.errors import UserError
from infinity_jax.sharding import batch_sharding
from infinity_jax.training.config import HELD_OUT_SEED, RunConfig


def located_data(config: RunConfig) -> DataConfig:
    """The data configuration of a run, with the folder of its indexes filled in."""
    folder = config.data.index_dir or str(pathlib.Path(config.run_dir) / 'data_index')
    return dataclasses.replace(config.data, index_dir=folder)


def make_batches(config: RunConfig, split: str, **text: Any) -> Batches:
    """The batches of a split ('train' or 'held_out').

    Args:
      config: the run.
      split: 'train' or 'held_out'.
      text: `text_tokenizer` and `text_length`, for tasks that read captions.
    """
    return training_batches(
        located_data(config),
        split=split,
        batch_size=config.batch_size,
        seed=config.seed if split == 'train' else HELD_OUT_SEED,
        **text,
    )


def held_out_batches(config: RunConfig, **text: Any) -> list[Batch]:
    """The host batches that every evaluation uses."""
    return first_batches(config, 'held_out', config.eval_batches, **text)


def first_batches(config: RunConfig, split: str, count: int, **text: Any) -> list[Batch]:
    """The first few host batches of a split, read without worker processes."""
    data = dataclasses.replace(config.data, num_workers=0)
    batches = make_batches(dataclasses.replace(config, data=data), split, **text)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()  # ends reading ahead


def check_batch(config: RunConfig, mesh: Mesh) -> None:
    """Raises `UserError` unless the batch splits evenly over the mesh and over the hosts."""
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    if config.batch_size % shards:
        raise UserError(
            f'batch_size {config.batch_size} does not divide over data x fsdp = {shards} shares; '
            f'use a multiple of {shards} or change config.mesh'
        )
    if shards % jax.process_count():
        raise UserError(
            f'mesh has data x fsdp = {shards} shares of a batch for {jax.process_count()} hosts, '
            'which would feed different images to one share; give every host a share'
        )


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Turns this process's share of a batch into global arrays, split over the mesh.

    Args:
      batch: host arrays; its captions are left out of the result.
      mesh: the devices.
    """
    sharding = batch_sharding(mesh)
    put = lambda array: jax.make_array_from_process_local_data(sharding, array)
    return jax.tree.map(put, batch.arrays())
