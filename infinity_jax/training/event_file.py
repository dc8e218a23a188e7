"""TensorBoard's file of scalars, written by the thread that has them.

tensorboardX's own `SummaryWriter` hands them to a second thread. A full disk ends that thread, and
the run then waits for it forever.
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

FLUSH_SECONDS = 120  # between writes to the disk


class EventFile:
    """A file of events in a folder, which TensorBoard shows.

    Args:
      folder: made if it is missing; earlier starts of the run have left their files there.
      purge_step: TensorBoard hides what those files have for this and later steps.

    Raises:
      OSError: the folder cannot be written; so do the methods.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        # Imported here: reading metrics does without it.
        from tensorboardX import event_file_writer
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(folder / 'events'))
        start = SessionLog(status=SessionLog.START)
        for event in (Event(file_version='brain.Event:2'), Event(session_log=start)):
            event.step = purge_step
            self._write(event)
        self._writer.flush()
        self._flushed = time.monotonic()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of some scalars at a step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(Event(step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file.

        Raises:
          OSError: the disk is full.
        """
        self._writer.close()
