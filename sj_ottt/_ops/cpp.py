"""Kernels in C++ for this machine's processor, compiled when they are first used.

PyTorch's operations go through memory once each, a dozen times in a neuron's step and its backward
pass; a kernel goes once. What is compiled is kept in the cache beside other derived files, for the
next process.
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
from typing import Any

import torch
from torch import Tensor

from sj_ottt._files import atomic_write, cache_root
from sj_ottt._ops.calls import is_recorded
from sj_ottt.errors import InputError

__all__ = ["available", "function", "has_numbers", "missing", "threads"]

OPTIONS = (
    *("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC"),
    "-fopenmp",  # PyTorch's own threads: it has loaded the library of this name
    "-ffp-contract=off",  # a fused multiply-add would round otherwise than torch
    # Without these, a choice between two numbers is a jump. No number changes.
    *("-fno-math-errno", "-fno-trapping-math"),
)
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
def available(source: str, *defines: str) -> bool:
    """Whether the kernels of a file beside this one can be compiled, which is tried once.

    Args:
        source: The file's name.
        defines: Names and values ("NAME=value") that it is compiled for.
    """
    if missing() is not None:
        return False
    try:
        _library(source, defines)
    except InputError as error:
        _warn_once(f"{error}; PyTorch's operations take their place, which are slower")
        return False
    return True


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def has_numbers(x: Tensor) -> bool:
    """Whether a kernel can read a tensor.

    It cannot read a stand-in, of which only the shape is known, or a part of a batch, and what is
    recorded it leaves to PyTorch's operators.
    """
    if is_recorded() or type(x) is not Tensor or not x.is_cpu:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


def threads(numbers: int) -> int:
    """Return how many of PyTorch's threads are worth it for so many numbers."""
    return max(1, min(torch.get_num_threads(), numbers // _PER_THREAD))


@functools.cache
def function(source: str, name: str, *defines: str) -> Any:
    """Return a kernel of a file beside this one, compiled for what is defined.

    Raises:
        InputError: If the compiler is missing or fails, or what it made cannot be loaded.
    """
    return getattr(_library(source, defines), name)


@functools.cache
def _library(source: str, defines: tuple[str, ...]) -> ctypes.CDLL:
    """Return the kernels of a file."""
    try:
        return _compiled(Path(__file__).with_name(source), defines)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        reason = next((line for line in said.splitlines() if "error" in line), said.strip())
        raise InputError(
            f"the C++ kernels cannot be compiled here ({reason}): mend the compiler "
            '(the environment variable CXX names another), or say backend="torch"'
        ) from error


def _compiled(source: Path, defines: tuple[str, ...]) -> ctypes.CDLL:
    """Load the kernels from the cache, or compile them."""
    compiler = _compiler()
    if compiler is None:
        raise FileNotFoundError("no C++ compiler")
    names = [f"-D{define}" for define in defines]
    command = [*compiler, *OPTIONS, *names, "-x", "c++", str(source)]
    kept = cache_root() / "kernels" / f"{source.stem}-{_digest(source, command)}.so"
    with contextlib.suppress(OSError):  # not there, damaged, or in a folder that runs no programs
        return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory(prefix="sj_ottt_kernels") as folder:
        built = Path(folder) / "kernels.so"
        subprocess.run(
            [*command, "-o", str(built)], check=True, capture_output=True, text=True, timeout=300
        )
        with contextlib.suppress(InputError), atomic_write(kept, durable=False) as file:
            file.write(built.read_bytes())
        return ctypes.CDLL(str(built))


def _digest(source: Path, command: list[str]) -> str:
    """Return what a compiled kernel is of: source, compiler, options, processor and user.

    A home folder may be that of several machines, and a cache that of several users, none of whom
    runs what another has compiled.
    """
    compiler = Path(command[0]).stat()
    digest = hashlib.sha256(source.read_bytes())
    said = (*command[:-1], compiler.st_size, compiler.st_mtime_ns, platform.machine(), os.getuid())
    digest.update(repr(said).encode())
    digest.update(_processor().encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Return what the processor can do, as Linux tells it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        return "".join(sorted({s for s in file if s.startswith(("flags", "Features", "model "))}))
    return ""
