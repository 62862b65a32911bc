"""The kernels of `lif.cu` on a GPU, compiled when they are first used.

CuPy compiles and launches them where it is installed, and CUDA's own Python bindings where it is
not, or where it is one for another CUDA. Either makes the same program of the same source.
"""

import functools
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sj_ottt._ops import cuda_bindings
from sj_ottt._ops.cuda_bindings import THREADS, Launch
from sj_ottt.errors import InputError

__all__ = ["available", "check_cupy", "kernel", "missing", "run"]

SOURCE = Path(__file__).with_name("lif.cu")
OPTIONS = ("--std=c++17", "--fmad=false")  # a fused multiply-add would round otherwise than torch


class _Stream(NamedTuple):
    """A stream as CuPy takes it."""

    ptr: int


def _by_cupy(name: str, options: tuple[str, ...]) -> Launch:
    import cupy

    module = cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=options)
    function = module.get_function(name)

    def launch(blocks: int, call: np.ndarray, stream: int) -> None:
        # An array of one struct goes to the kernel by value.
        function((blocks,), (THREADS,), (call,), stream=_Stream(stream))

    return launch


def _by_cuda(name: str, options: tuple[str, ...]) -> Launch:
    return cuda_bindings.kernel(SOURCE, name, options)


COMPILERS = {"CuPy": _by_cupy, "cuda-bindings": _by_cuda}
"""The packages that compile kernels, the first one first."""


def missing(cupy_alone: bool = False) -> str | None:
    """Return why the kernels cannot run in this process; None where they can.

    Args:
        cupy_alone: Whether CUDA's own bindings are no answer where CuPy is missing.
    """
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA GPU"
    try:
        import cupy  # noqa: F401
    except ImportError:
        install = "pip install cupy-cuda13x (cupy-cuda12x for CUDA 12)"
        if cupy_alone:
            return f'CuPy is not installed: {install}, or say backend="cuda"'
        if not cuda_bindings.is_installed():
            return f"neither CuPy nor cuda-bindings is installed: {install}"
    return None


# PyTorch's compiler looks through a cache: what it is to take as it is lies in front of one.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available(device: int) -> bool:
    """Whether the kernels are there and can be compiled for a device, which is tried once."""
    return _available(device)


@functools.cache
def _available(device: int) -> bool:
    if missing() is not None:
        return False
    package, reasons = _package(device)
    if package is None:
        warnings.warn(
            f'{_cannot(reasons)}, so backend="auto" takes PyTorch\'s operations, which read and '
            f"write more memory: {_REMEDY}",
            stacklevel=3,
        )
    return package is not None


def check_cupy(device: int) -> None:
    """Refuse a device for which CuPy cannot compile the kernels.

    Raises:
        InputError: With what CuPy says.
    """
    package, reasons = _package(device)
    if package != "CuPy":
        raise InputError(f'{_cannot(reasons)}: mend CuPy, or say backend="cuda"')


_REMEDY = (
    "install a CuPy or cuda-bindings for the CUDA of PyTorch and of the driver, or say "
    'backend="torch"'
)


def _cannot(reasons: str) -> str:
    return f"the CUDA kernels of neurons cannot be compiled here ({reasons})"


@functools.cache
def _package(device: int) -> tuple[str | None, str]:
    """Return the first package that can compile the kernels for a device, and why none before."""
    reasons = []
    for package, compiled in COMPILERS.items():
        try:
            with torch.cuda.device(device):
                compiled("lif_forward", _options(("SCALAR=float", "TRACE=Packed"), ()))
        except Exception as error:  # whatever the package, the compiler or the driver raise
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            reasons.append(f"{package}: {said}")
        else:
            return package, "; ".join(reasons)
    return None, "; ".join(reasons)


def run(
    name: str,
    call: np.ndarray,
    types: tuple[str, str],
    flags: tuple[str, ...],
    like: Tensor,
    lanes: int,
) -> None:
    """Run a kernel on the struct of its arguments, in the stream that PyTorch uses there.

    Args:
        name: Of the kernel.
        call: Its arguments.
        types: Of numbers and trace, as `lif_launch.types` says.
        flags: Its constants.
        like: A tensor on the device, with as many numbers as the kernel takes.
        lanes: Numbers that one thread takes.

    Raises:
        InputError: If the kernels cannot be compiled.
    """
    blocks = -(-like.numel() // (THREADS * lanes))
    with torch.cuda.device(like.device):
        launch = kernel(name, types, flags, like.device.index)
        launch(blocks, call, torch.cuda.current_stream(like.device).cuda_stream)


@functools.cache
def kernel(name: str, types: tuple[str, str], flags: tuple[str, ...], device: int) -> Launch:
    """Return a kernel, compiled for what is given and for a device, the current one.

    Raises:
        InputError: If no package can compile it.
    """
    package, reasons = _package(device)
    if package is None:
        raise InputError(f"{_cannot(reasons)}: {_REMEDY}")
    return COMPILERS[package](name, _options(types, flags))


def _options(types: tuple[str, str], flags: tuple[str, ...]) -> tuple[str, ...]:
    return (*OPTIONS, *(f"-D{define}" for define in types), *flags)
