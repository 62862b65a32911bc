"""Run something in a process of its own, and say how much memory it took at most."""

import contextlib
import resource
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from tests.forks import FORKS

CEILING = 6 << 30
"""Bytes of address space beside what the imports take, so that no bomb fills the machine."""
_STUCK_S = 60.0


class Outcome(NamedTuple):
    """What came of it.

    Attributes:
        text: What was returned, or the error's class and text.
        grown: By how many bytes the process grew at most.
    """

    text: str
    grown: int


def apart(function: Callable[..., Any], *args: Any) -> Outcome:
    """Call a function in another process, of which a fraction of the machine's memory is asked."""
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_child, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        if receiver.poll(_STUCK_S):
            with contextlib.suppress(EOFError):
                return receiver.recv()
            return Outcome(f"ended with {process.exitcode}", 0)
        return Outcome(f"hangs for {_STUCK_S:.0f} s", 0)
    finally:
        process.kill()
        process.join()


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1]) << 10


def _child(sender: Connection, function: Callable[..., Any], args: tuple) -> None:
    size = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (size + CEILING, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            text = str(function(*args))
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
    sender.send(Outcome(text, max(0, _status("VmHWM") - before)))
