"""Work on many items: in order, in several processes where that pays, behind a progress bar."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from sj_ottt.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Below this many items, starting processes takes longer than the work, and nobody needs a bar.
_MANY = 200
# Items handed out before their turn, per process: enough to keep all busy, few enough for memory.
_AHEAD = 4


def ordered_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    what: str,
    workers: int | None = None,
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` for each item, in order.

    Closing the iterator early cancels what has not begun. Processes whose parent was killed end by
    themselves.

    Args:
        function: What to do with an item; several processes need it to be picklable.
        items: What to work on.
        what: The name of the work beside its progress bar, which a terminal shows for many items.
        workers: Processes; 0 or 1 works in this one. None takes a process per core for many items.

    Raises:
        InputError: A process was killed from outside.
        Exception: Whatever ``function`` raises for the first item at which it does.
    """
    if workers is None:
        workers = _cores() if len(items) > _MANY else 0
    # Workers of a DataLoader must not have children of their own.
    in_this_process = min(workers, len(items)) < 2 or multiprocessing.current_process().daemon
    results = map(function, items) if in_this_process else _in_processes(function, items, workers)
    # disable=None shows the bar on a terminal only.
    disable = None if len(items) > _MANY else True
    yield from tqdm(results, desc=what, total=len(items), leave=False, disable=disable)


def _in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[Result, None, None]:
    executor = ProcessPoolExecutor(workers, initializer=_set_up_worker)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            f"workers={workers}: one of these processes was killed, perhaps for want of memory; "
            "try again with fewer"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _set_up_worker() -> None:
    """Set up a worker: Ctrl-C is the parent's to answer, and no worker outlives the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
