"""Weights out of the checkpoints of a run, also for other commands while the run is going on."""

import logging
import os
import pathlib
import re
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from infinity_jax.errors import UserError, first_line
from infinity_jax.training.checkpoint_hashes import Damaged, check_hashes
from infinity_jax.training.run_folder import CHECKPOINTS


def saved_steps(folder: pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints in a folder; unfinished ones have another name."""
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if re.fullmatch('0|[1-9][0-9]*', name))


def silence_orbax() -> None:
    """Leaves out Orbax's log: a line per file, and long reports of errors that it also raises."""
    logging.getLogger('absl').addFilter(_not_orbax)


def _not_orbax(record: logging.LogRecord) -> bool:
    return 'orbax' not in record.pathname


def shapes_by_name(tree: Any) -> dict[str, tuple[int, ...]]:
    """Dotted path -> shape; structs, dictionaries, tuples and lists give the same paths."""

    def name(key):
        for attribute in ('name', 'key', 'idx'):
            if hasattr(key, attribute):
                return str(getattr(key, attribute))
        return str(key)

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {'.'.join(map(name, path)): tuple(leaf.shape) for path, leaf in leaves}


def load_weights(run_dir: str | os.PathLike, step: int | None, which: str) -> Any:
    """Reads one set of weights from a checkpoint onto the host, also while the run is going on.

    Args:
      run_dir: the run folder.
      step: the checkpoint's step; None takes the newest.
      which: 'params' or 'ema'.

    Raises:
      UserError: there is no such checkpoint, or it cannot be read.
    """
    folder = pathlib.Path(run_dir).absolute() / CHECKPOINTS
    steps = saved_steps(folder) if folder.is_dir() else []
    if not steps or (step is not None and step not in steps):
        present = ', '.join(map(str, steps)) or 'none'
        raise UserError(
            f'{folder}: no checkpoint{"" if step is None else f" of step {step}"}; there: {present}'
        )
    path = folder / str(steps[-1] if step is None else step)
    silence_orbax()
    try:
        check_hashes(path)
    except Damaged as error:
        others = ', '.join(str(each) for each in steps if each != int(path.name)) or 'no other'
        raise UserError(f'{error}; name {folder}/STEP of another one, there: {others}') from None
    # All shards go to one device of the host, so it does not matter which mesh saved them.
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
    options = ocp.options.PyTreeOptions(
        loading=ocp.options.PyTreeOptions.Loading(partial_load=True)  # no optimizer state
    )
    try:
        saved = ocp.metadata(path, checkpointable_name='state').metadata
        if which not in saved:
            raise UserError(f'checkpoint {path} holds {", ".join(saved)}; wanted {which}')
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host), saved[which]
        )
        with ocp.Context(pytree_options=options):
            return ocp.load(path, {which: abstract}, checkpointable_name='state')[which]
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax raises errors of any type where its files are damaged
        reason = first_line(error, 300)
        raise UserError(f'checkpoint {path} cannot be read: {reason}; name another one') from error
