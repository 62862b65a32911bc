"""The kernels of `lif.cu` on a GPU, for which CuPy compiles them when they are first used."""

import functools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["available", "kernel", "missing", "run"]

SOURCE = Path(__file__).with_name("lif.cu")
OPTIONS = ("--std=c++17", "--fmad=false")  # a fused multiply-add would round otherwise than torch
THREADS = 256


def missing() -> str | None:
    """Return why the kernels cannot run in this process; None where they can."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA GPU"
    try:
        import cupy  # noqa: F401
    except ImportError:
        return "CuPy is not installed: pip install cupy-cuda13x (cupy-cuda12x for CUDA 12)"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
@functools.cache
def available() -> bool:
    """Whether the kernels are there and can be compiled, which is tried once."""
    if missing() is not None:
        return False
    try:
        kernel("lif_forward", ("SCALAR=float", "TRACE=Packed"), ())
    except Exception as error:  # whatever CuPy, the compiler or the driver raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f'the CUDA kernels of neurons cannot be compiled here ({reason}), so backend="auto" '
            "takes PyTorch's operations, which read and write more memory: mend CuPy "
            '(python -c "import cupy; cupy.show_config()"), or say backend="torch"',
            stacklevel=2,
        )
        return False
    return True


class _Stream(NamedTuple):
    """A stream as CuPy takes it."""

    ptr: int


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
    """
    function = kernel(name, types, flags)
    blocks = -(-like.numel() // (THREADS * lanes))
    stream = _Stream(torch.cuda.current_stream(like.device).cuda_stream)
    with torch.cuda.device(like.device):
        # An array of one struct goes to the kernel by value.
        function((blocks,), (THREADS,), (call,), stream=stream)


@functools.cache
def kernel(name: str, types: tuple[str, str], flags: tuple[str, ...]) -> Any:
    """Return a kernel, compiled for what is given; see `lif.cu`."""
    return _module(types, flags).get_function(name)


@functools.cache
def _module(types: tuple[str, str], flags: tuple[str, ...]) -> Any:
    import cupy

    options = (*OPTIONS, *(f"-D{define}" for define in types), *flags)
    return cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=options)
