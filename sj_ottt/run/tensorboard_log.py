"""TensorBoard scalars of a run."""

import contextlib
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from sj_ottt.errors import InputError


class TensorBoardLog:
    """Writes TensorBoard scalars in this thread, so that a full disk is reported at once.

    Each start of a run writes a file of its own, whose head tells TensorBoard to drop what an
    earlier, killed process logged from ``purge_step`` on.

    Args:
        folder: Folder of the files; its parent must exist.
        purge_step: The first step that this start logs.

    Raises:
        InputError: The disk is full or not writable; so do the methods.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        if folder.is_symlink():
            raise InputError(f"{folder}: is a link out of the run's folder; remove it")
        try:
            folder.mkdir(exist_ok=True)
            self._records = RecordWriter(open(self.path, "wb"))  # noqa: SIM115
        except OSError as error:
            raise self._cannot_write(error) from error
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=start)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Log the values that are not None at a step, and flush."""
        rows = [
            summary_pb2.Summary.Value(tag=tag, simple_value=value)
            for tag, value in values.items()
            if value is not None
        ]
        self._write(step=step, summary=summary_pb2.Summary(value=rows))

    def _write(self, **event: Any) -> None:
        try:
            self._records.write(event_pb2.Event(wall_time=time.time(), **event).SerializeToString())
            self._records.flush()
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._records.close()

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(
            f"{self.path}: cannot be written ({error.strerror or error}); free some space on the "
            "disk, then continue with --resume"
        )
