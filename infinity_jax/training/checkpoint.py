"""Checkpoints of a run, through Orbax. The state's step is its position in the data, too.

A save goes in the background into a temporary folder, which is renamed when it is complete: an
interrupted save never harms the last good checkpoint. Hashes of its files follow
(`checkpoint_hashes`). A run goes on from the newest checkpoint that has none of them changed.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from infinity_jax.errors import UserError, first_line
from infinity_jax.runtime.host_texts import from_first_process
from infinity_jax.runtime.remote_copy import unwritable
from infinity_jax.training.checkpoint_hashes import Damaged, check_hashes, write_hashes
from infinity_jax.training.checkpoint_weights import saved_steps, shapes_by_name, silence_orbax
from infinity_jax.training.remote_run import CHECKPOINTS, RemoteRun

DAMAGED = 'damaged_checkpoints'  # in a run folder; damaged checkpoints are moved there
RECENT_LOSSES = 'recent_losses'  # in the metadata of a checkpoint
# Errors of Orbax's own parsing where a description is damaged.
PARSE_ERRORS = (ValueError, TypeError, KeyError, AttributeError)


class Checkpoints:
    """The newest few checkpoints of a run folder. All processes of a run call the same methods.

    Args:
      run_dir: the run folder; checkpoints go into its `checkpoints/STEP`.
      keep: how many to keep.

    Raises:
      UserError: the folder cannot be written.
    """

    def __init__(self, run_dir: str | os.PathLike, keep: int):
        self.folder = pathlib.Path(run_dir).absolute() / CHECKPOINTS
        self._keep = keep
        self._saving: concurrent.futures.Future | None = None
        self._background = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint')
        silence_orbax()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = from_first_process([str(step) for step in saved_steps(self.folder)])
        except OSError as error:
            raise self._unwritable(error) from None
        self._saved = [int(name) for name in names]

    @functools.cached_property
    def _checkpointer(self) -> ocp.training.Checkpointer:
        """Orbax's writer, made late: it reads a description of every checkpoint in the folder."""
        policies = ocp.training.save_decision_policies
        try:
            return ocp.training.Checkpointer(
                self.folder,
                # The training loop decides when to save, so this policy accepts every step.
                save_decision_policy=policies.FixedIntervalPolicy(1),
                preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
                cleanup_tmp_directories=True,
            )
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f'checkpoint folder {self.folder}: {error.strerror or error}; make it writable or '
            'set config.run_dir to another place'
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self._saved, default=None)

    def save(self, step: int, state: Any, recent_losses: Sequence[float] = ()) -> None:
        """Waits for any earlier save, then starts to save; does nothing for a step that is saved.

        Args:
          step: steps taken.
          state: pytree of arrays; copied to the host before this returns.
          recent_losses: the last losses of the run, stored next to the state.

        Raises:
          UserError: this or the previous save failed, for instance on a full disk.
        """
        self.wait()
        if step in self._saved:
            return
        try:
            response = self._checkpointer.save_checkpointables_async(
                step, {'state': state}, custom_metadata={RECENT_LOSSES: list(recent_losses)}
            )
        except OSError as error:
            raise self._failure(error) from None
        self._saving = self._background.submit(self._finish, step, response)

    def _finish(self, step: int, response: Any) -> None:
        """Waits for Orbax, then writes the hashes; in the background."""
        if response is not None:
            response.result()
        if jax.process_index() == 0:
            write_hashes(self.folder / str(step))
        if (remote := RemoteRun.of(self.folder.parent)) is not None:
            try:
                remote.send_checkpoint(step)
            except OSError as error:
                raise unwritable(remote.url, error) from None
        self._saved.append(step)

    def wait(self) -> None:
        """Waits until the current save, if any, is complete.

        Raises:
          UserError: the save failed.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.result()
        except Exception as error:  # a full disk raises OSError, or an error with only a message
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> UserError:
        if isinstance(error, UserError):
            return error
        full = 'No space left on device'  # the full message also names an internal file
        reason = full if full in str(error) else first_line(error, 300)
        good = 'none yet' if self.latest_step is None else f'step {self.latest_step}, unharmed'
        return UserError(
            f'could not save a checkpoint in {self.folder}: {reason}; the last good one '
            f'is {good}: free space or make the folder writable, then start the same command again'
        )

    def restore_newest(self, abstract_state: Any, say: Callable[[str], None] = print) -> Any | None:
        """Reads the newest whole checkpoint; damaged ones that are newer are moved away.

        Args:
          abstract_state: tree of ShapeDtypeStructs with shardings.
          say: prints a line.

        Returns:
          the state, or None if there is no checkpoint.

        Raises:
          UserError: all checkpoints are damaged, or the newest whole one has other shapes.
        """
        damaged: dict[int, Damaged] = {}
        state = None
        for step in sorted(self._saved, reverse=True):
            try:
                state = self.restore(step, abstract_state, say)
                break
            except Damaged as error:
                damaged[step] = error
        if damaged and state is None:
            raise UserError(
                f'no checkpoint is whole: {"; ".join(map(str, damaged.values()))}; copy a whole '
                'one there, or set config.run_dir to a new folder'
            )
        for newer, damage in damaged.items():
            say(f'{damage}; moved to {self._move_away(newer)}')
        self._open(say)
        return state

    def restore(
        self, step: int, abstract_state: Any, say: Callable[[str], None] = lambda _: None
    ) -> Any:
        """Compares a checkpoint with its hashes and reads it; any mesh may have saved it.

        Args:
          step: the checkpoint's step.
          abstract_state: tree of ShapeDtypeStructs with shardings.
          say: prints a line.

        Returns:
          the state, on the devices.

        Raises:
          Damaged: some file of the checkpoint is damaged.
          UserError: it has other shapes, or cannot be read for another reason.
        """
        path = self.folder / str(step)
        hashed = check_hashes(path)
        try:
            saved = shapes_by_name(ocp.metadata(path, checkpointable_name='state').metadata)
            if not saved:
                raise ValueError('its description is empty')
            _check_shapes(path, saved, shapes_by_name(abstract_state))
            state = ocp.load_checkpointables(path, {'state': abstract_state})['state']
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # Orbax raises errors of any type where its files are damaged
            raise _unreadable(path, error, hashed) from error
        if not hashed:
            say(
                f'checkpoint {path} has no hashes (an older version wrote it, or the run was '
                'killed before they were written): it was read unchecked'
            )
            if jax.process_index() == 0:
                self._saving = self._background.submit(write_hashes, path)
        return state

    def recent_losses(self, step: int) -> list[float]:
        """The losses stored with the checkpoint of a step; none without one, or if it has none."""
        if step not in self._saved:
            return []
        path = self.folder / str(step)
        stored = ocp.metadata(path, checkpointable_name='state').custom_metadata
        return list(stored.get(RECENT_LOSSES, ())) if isinstance(stored, dict) else []

    def _move_away(self, step: int) -> pathlib.Path:
        """Moves a damaged checkpoint out of Orbax's folder; returns its new place."""
        folder = self.folder.parent / DAMAGED
        target = folder / str(step)
        self._saved.remove(step)
        if jax.process_index() == 0:
            for i in itertools.count(2):
                if not target.exists():
                    break
                target = folder / f'{step}.{i}'
            try:
                folder.mkdir(exist_ok=True)
                (self.folder / str(step)).rename(target)
            except OSError as error:
                raise self._unwritable(error) from None
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices('a damaged checkpoint was moved')
        return target

    def _open(self, say: Callable[[str], None]) -> None:
        """Makes Orbax's writer, which removes unfinished saves of a killed run.

        It reads a description of every checkpoint. If one of an older checkpoint is damaged, that
        checkpoint is moved away.
        """
        try:
            self._checkpointer  # noqa: B018 (makes it)
        except UserError:
            raise
        except PARSE_ERRORS:
            for step in sorted(self._saved):
                try:
                    check_hashes(self.folder / str(step))
                except Damaged as error:
                    say(f'{error}; moved to {self._move_away(step)}')
            try:
                self._checkpointer  # noqa: B018
            except PARSE_ERRORS as error:
                raise UserError(
                    f'checkpoint folder {self.folder}: the _CHECKPOINT_METADATA of a checkpoint '
                    f'there is damaged ({first_line(error, 200)}); move that checkpoint away'
                ) from error

    def close(self) -> None:
        """Ends background work; `wait` has already reported a failed save."""
        self._background.shutdown()
        if '_checkpointer' in self.__dict__:
            with contextlib.suppress(Exception):
                self._checkpointer.close()


def _check_shapes(path: pathlib.Path, saved: dict, configured: dict) -> None:
    for name in sorted(saved.keys() | configured.keys()):
        if saved.get(name) != configured.get(name):
            raise UserError(
                f'checkpoint {path}: {name} is {saved.get(name, "absent")}, but the config wants '
                f'{configured.get(name, "none")}; go back to the config of that run (config.json '
                'there) or set config.run_dir to a new folder'
            )


def _unreadable(path: pathlib.Path, error: Exception, hashed: bool) -> UserError:
    reason = f'checkpoint {path} cannot be read: {first_line(error, 300)}'
    if hashed:
        return UserError(
            f'{reason}; its files are as they were saved, so compare the installed versions with '
            'those in versions.json'
        )
    # Other processes may have read it, and only hashes let all of them agree to go back.
    if jax.process_count() > 1:
        return UserError(f'{reason}; move that folder away to go on from the one before it')
    return Damaged(reason)
