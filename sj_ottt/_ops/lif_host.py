"""The kernels of `lif.cu` as C++ for this machine's processor, compiled when they are first used.

PyTorch's operations go through memory once each, a dozen times in a neuron's step and its backward
pass; the kernels go once. They are kept in the cache beside other derived files, for the next
process.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from sj_ottt._files import atomic_write, cache_root
from sj_ottt.errors import InputError

__all__ = ["available", "missing", "run", "threads"]

SOURCE = Path(__file__).with_name("lif.cu")
OPTIONS = (
    *("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC"),
    "-fopenmp",  # PyTorch's own threads: it has loaded the library of this name
    "-ffp-contract=off",  # a fused multiply-add would round otherwise than torch
    # Without these, a choice between two numbers is a jump. No number changes.
    *("-fno-math-errno", "-fno-trapping-math"),
)
LANES = 64
"""Neurons that an inner loop takes: some of the processor's vectors."""

_PER_THREAD = 1 << 15
"""Numbers below which another thread costs more than it saves, as for PyTorch's operations."""


def _compiler() -> list[str] | None:
    """Return the command of a C++ compiler."""
    given = shlex.split(os.environ.get("CXX", ""))
    found = shutil.which(given[0]) if given else shutil.which("g++") or shutil.which("c++")
    return None if found is None else [found, *given[1:]]


def missing() -> str | None:
    """Return why the kernels cannot run in this process; None where they can."""
    if sys.platform != "linux":
        return "they are for Linux alone"
    if _compiler() is None:
        return "there is no C++ compiler: install g++ (Debian: apt install g++)"
    return None


@functools.cache
def available(scalar: str, trace: str) -> bool:
    """Whether the kernels for a pair of types (see `lif.cu`) are there, which is tried once."""
    if missing() is not None:
        return False
    try:
        _library(scalar, trace)
    except InputError as error:
        warnings.warn(
            f'{error}; backend="auto" takes PyTorch\'s operations, which are slower', stacklevel=2
        )
        return False
    return True


def threads(numbers: int) -> int:
    """Return how many of PyTorch's threads are worth it for so many numbers."""
    return max(1, min(torch.get_num_threads(), numbers // _PER_THREAD))


def run(name: str, call: np.ndarray, scalar: str, trace: str) -> None:
    """Run a kernel on the struct of its arguments."""
    getattr(_library(scalar, trace), name)(ctypes.c_void_p(call.ctypes.data))


@functools.cache
def _library(scalar: str, trace: str) -> ctypes.CDLL:
    """Return the kernels, compiled for a pair of types.

    Raises:
        InputError: If the compiler is missing or fails, or what it made cannot be loaded.
    """
    try:
        return _compiled(scalar, trace)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        reason = next((line for line in said.splitlines() if "error" in line), said.strip())
        raise InputError(
            f"the C++ kernels of neurons cannot be compiled here ({reason}): mend the compiler "
            '(the environment variable CXX names another), or say backend="torch"'
        ) from error


def _compiled(scalar: str, trace: str) -> ctypes.CDLL:
    """Load the kernels from the cache, or compile them."""
    compiler = _compiler()
    if compiler is None:
        raise FileNotFoundError("no C++ compiler")
    names = (f"-DSCALAR={scalar}", f"-DTRACE={trace}", f"-DLANES={LANES}")
    command = [*compiler, *OPTIONS, *names, "-x", "c++", str(SOURCE)]
    kept = cache_root() / "kernels" / f"lif-{scalar}-{trace}-{_digest(command)}.so"
    with contextlib.suppress(OSError):  # not there, damaged, or in a folder that runs no programs
        return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory(prefix="sj_ottt_kernels") as folder:
        built = Path(folder) / "lif.so"
        subprocess.run(
            [*command, "-o", str(built)], check=True, capture_output=True, text=True, timeout=300
        )
        with contextlib.suppress(InputError), atomic_write(kept, durable=False) as file:
            file.write(built.read_bytes())
        return ctypes.CDLL(str(built))


def _digest(command: list[str]) -> str:
    """Return what a compiled kernel is of: source, compiler, options, processor and user.

    A home folder may be that of several machines, and a cache that of several users, none of whom
    runs what another has compiled.
    """
    compiler = Path(command[0]).stat()
    digest = hashlib.sha256(SOURCE.read_bytes())
    said = (*command[:-1], compiler.st_size, compiler.st_mtime_ns, platform.machine(), os.getuid())
    digest.update(repr(said).encode())
    digest.update(_processor().encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Return what the processor can do, as Linux tells it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        return "".join(sorted({s for s in file if s.startswith(("flags", "Features", "model "))}))
    return ""
