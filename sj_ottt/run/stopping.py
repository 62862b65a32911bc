"""Runs that are asked to stop: by a signal, as at the end of a cluster's time, or by the clock."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from sj_ottt.run.group import started_again

__all__ = ["RunStopped", "Stopping"]

_OUT_OF_TIME = 75  # EX_TEMPFAIL: try again


class RunStopped(Exception):
    """A run that was asked to stop has saved itself and ends.

    Args:
        why: What asked it.
        exit_code: For the process: 128 and the signal's number, or 75 at the end of a time limit;
            0 then where ``torchrun`` would start it again, with another time limit.
        where: How far the run has come.
    """

    def __init__(self, why: str, exit_code: int, where: str) -> None:
        super().__init__(f"{why}: saved {where}")
        self.exit_code = 0 if exit_code == _OUT_OF_TIME and started_again() else exit_code


class Stopping:
    """Notes SIGTERM, SIGINT and the end of a time limit, so that a run can stop between batches.

    A second signal of a kind does what it would have done without this. Threads other than the main
    one get no signals, and note the time limit alone.

    Args:
        minutes: The time limit; None for no limit.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self._limit = None if minutes is None else time.monotonic() + 60 * minutes
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, self._before[number])

    @property
    def code(self) -> int:
        """The exit code of the process that is to stop; 0 while it may go on."""
        if self._signal is not None:
            return 128 + self._signal
        return _OUT_OF_TIME if self._limit is not None and time.monotonic() > self._limit else 0

    @staticmethod
    def why(code: int) -> str:
        """Say in words what an exit code stands for."""
        return "time limit" if code == _OUT_OF_TIME else signal.Signals(code - 128).name


class Every:
    """Says when so many minutes have passed again.

    Args:
        minutes: How many.
        clock: Returns seconds.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = 60 * minutes, clock
        self._next = clock() + self._seconds

    def due(self) -> bool:
        """Whether the time has come; if so, count anew."""
        if self._clock() < self._next:
            return False
        self._next = self._clock() + self._seconds
        return True
