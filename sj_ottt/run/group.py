"""The processes of a run, as ``torchrun`` starts them; most runs have but one.

    torchrun --nproc-per-node N -m sj_ottt train ...

The first process writes, shows the progress and prints; all train, and their numbers are added up.
"""

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from sj_ottt.errors import InputError

__all__ = ["ALONE", "Group", "joined", "started_again", "started_by_torchrun"]

# How long a process waits for another one, which may be reading recordings or testing.
_PATIENCE = timedelta(hours=2)
_MOMENT_S = 0.01


@dataclass(frozen=True)
class Group:
    """This process among those of the run.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """This process's number and how many there are, for what divides samples."""
        return self.rank, self.size

    def largest(self, value: int, device: torch.device) -> int:
        """Return the largest of the processes' numbers."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device=_of_exchange(device))
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def added_up(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=_of_exchange(device))
        dist.all_reduce(sums)
        return sums.tolist()

    @contextmanager
    def one_after_the_first(self) -> Iterator[None]:
        """Let the first process do something before the others do, which then find it done."""
        if self.size > 1 and not self.first:
            dist.barrier()
        yield
        if self.size > 1 and self.first:
            dist.barrier()


ALONE = Group()


def started_by_torchrun() -> tuple[int, int, int] | None:
    """Return rank, number of processes and local rank where ``torchrun`` has set them."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in os.environ for name in names):
        return None
    rank, size, local = (int(os.environ[name]) for name in names)
    return rank, size, local


def started_again() -> bool:
    """Whether ``torchrun`` starts processes again that end with another code than 0."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Join the processes that ``torchrun`` started, if it did, or those of a group that is there.

    Args:
        device: Where this process trains: GPUs exchange by NCCL, all others by gloo.

    Raises:
        InputError: Another process has ended.
    """
    if dist.is_available() and dist.is_initialized():
        yield Group(dist.get_rank(), dist.get_world_size())
        return
    if (found := started_by_torchrun()) is None or found[1] == 1:
        yield ALONE
        return
    rank, size, _ = found
    backend = "nccl" if device.type == "cuda" else "gloo"
    meeting, _, _ = next(dist.rendezvous("env://", rank, size, timeout=_PATIENCE))
    store = dist.PrefixStore(_agree_on_a_name(meeting, rank, size), meeting)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield Group(rank, size)
    except (dist.DistError, RuntimeError) as error:
        if not isinstance(error, dist.DistError) and not _is_lost_connection(error):
            raise
        if threading.current_thread() is threading.main_thread():
            # torchrun ends this process too, which ends by itself, once it has said why.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise InputError(
            f"process {rank} of {size} lost another one, whose own message says why; what was "
            "saved is whole: continue with --resume"
        ) from error
    finally:
        dist.destroy_process_group()


def _agree_on_a_name(store: "dist.Store", rank: int, size: int) -> str:
    """Find a name that only the processes of this start know.

    Where ``torchrun`` starts processes again, it may give them the store of those before, with the
    addresses at which these are no more. The first process says a new name until each other one
    has repeated it, with a number of its own; and confirms that by the number. What is left of an
    earlier start holds neither the new name nor that number.
    """
    own = secrets.token_hex(8)
    if rank == 0:
        store.set("sj_ottt/name", own)
        for other in range(1, size):
            while True:
                name, _, number = _said(store, f"sj_ottt/repeated/{other}").partition(" ")
                if name == own:
                    break
            store.set(f"sj_ottt/confirmed/{other}", number)
        return own
    repeated = ""
    while _said(store, f"sj_ottt/confirmed/{rank}") != own:
        if (name := _said(store, "sj_ottt/name")) and name != repeated:
            store.set(f"sj_ottt/repeated/{rank}", f"{name} {own}")
            repeated = name
    return repeated


def _said(store: "dist.Store", key: str) -> str:
    """Return what a store holds, in a moment; an empty text where it holds nothing."""
    time.sleep(_MOMENT_S)
    return store.get(key).decode() if store.check([key]) else ""


def _is_lost_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("gloo", "connection closed", "connection reset"))


def _of_exchange(device: torch.device) -> torch.device:
    return device if device.type == "cuda" else torch.device("cpu")
