"""Checkpoints of a run, through Orbax. The state's step is its position in the data, too.

A save goes in the background into a temporary folder, which is renamed when it is complete: an
interrupted save never harms the last good checkpoint.
"""

import contextlib
import logging
import os
import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from infinity_jax.errors import UserError, first_line
from infinity_jax.training.run_folder import CHECKPOINTS


class Checkpoints:
    """The newest few checkpoints of a run folder.

    Args:
      run_dir: the run folder; checkpoints go into its `checkpoints/STEP`.
      keep: how many to keep.

    Raises:
      UserError: the folder cannot be written.
    """

    def __init__(self, run_dir: str | os.PathLike, keep: int):
        self.folder = pathlib.Path(run_dir).absolute() / CHECKPOINTS
        self._response = None
        logging.getLogger('absl').addFilter(_not_orbax)
        policies = ocp.training.save_decision_policies
        try:
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                # The training loop decides when to save, so this policy accepts every step.
                save_decision_policy=policies.FixedIntervalPolicy(1),
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,
            )
        except OSError as error:
            raise UserError(
                f'checkpoint folder {self.folder}: {error.strerror or error}; make it writable or '
                'set config.run_dir to another place'
            ) from None

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: Any) -> None:
        """Waits for any earlier save, then starts to save; does nothing for a step that is saved.

        Args:
          step: steps taken.
          state: pytree of arrays; copied to the host before this returns.

        Raises:
          UserError: this or the previous save failed, for instance on a full disk.
        """
        self.wait()
        if step == self.latest_step:
            return
        try:
            self._response = self._checkpointer.save_checkpointables_async(step, {'state': state})
        except OSError as error:
            raise self._failure(error) from None

    def wait(self) -> None:
        """Waits until the current save, if any, is complete.

        Raises:
          UserError: the save failed.
        """
        response, self._response = self._response, None
        if response is None:
            return
        try:
            response.result()
        except Exception as error:  # a full disk raises OSError, or an error with only a message
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> UserError:
        full = 'No space left on device'  # the full message also names an internal file
        reason = full if full in str(error) else first_line(error, 300)
        good = 'none yet' if self.latest_step is None else f'step {self.latest_step}, unharmed'
        return UserError(
            f'could not save a checkpoint in {self.folder}: {reason}; the last good one '
            f'is {good}: free space or make the folder writable, then start the same command again'
        )

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Reads a checkpoint onto the devices; any mesh may have saved it.

        Args:
          step: the checkpoint's step.
          abstract_state: tree of ShapeDtypeStructs with shardings.

        Returns:
          the state.

        Raises:
          UserError: the checkpoint is of a model with other shapes, or cannot be read.
        """
        try:
            saved = shapes_by_name(self._checkpointer.metadata(step).metadata)
            if not saved:
                raise ValueError('its description is empty')
            self._check_shapes(step, saved, shapes_by_name(abstract_state))
            return self._checkpointer.load_checkpointables(step, {'state': abstract_state})['state']
        except UserError:
            raise
        except (OSError, ValueError, KeyError) as error:
            reason = first_line(error, 300)
            raise UserError(
                f'checkpoint {self.folder / str(step)} cannot be read: {reason}; delete that '
                'folder to go on from the one before it'
            ) from error

    def _check_shapes(self, step: int, saved: dict, configured: dict) -> None:
        for name in sorted(saved.keys() | configured.keys()):
            if saved.get(name) != configured.get(name):
                raise UserError(
                    f'checkpoint {self.folder / str(step)}: {name} is '
                    f'{saved.get(name, "absent")}, but the config wants '
                    f'{configured.get(name, "none")}; go back to the config of that run '
                    '(config.json there) or set config.run_dir to a new folder'
                )

    def close(self) -> None:
        """Ends background work; `wait` has already reported a failed save."""
        with contextlib.suppress(Exception):
            self._checkpointer.close()


def _not_orbax(record: logging.LogRecord) -> bool:
    """Leaves out Orbax's log: a line per file, and long reports of errors that it also raises."""
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
    steps = sorted(
        int(path.name)
        for path in folder.glob('*')
        if path.name.isdigit() and ocp.is_orbax_checkpoint(path)
    )
    if not steps or (step is not None and step not in steps):
        present = ', '.join(map(str, steps)) or 'none'
        raise UserError(
            f'{folder}: no checkpoint{"" if step is None else f" of step {step}"}; there: {present}'
        )
    path = folder / str(steps[-1] if step is None else step)
    logging.getLogger('absl').addFilter(_not_orbax)
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
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error, 300)
        raise UserError(f'checkpoint {path} cannot be read: {reason}; name another one') from error
