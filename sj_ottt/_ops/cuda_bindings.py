"""Kernels in CUDA by CUDA's own Python bindings, which PyTorch brings along from 2.10 on.

Like CuPy, they need no compiler but NVRTC, and they launch without PyTorch's dispatcher.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["THREADS", "Launch", "is_installed", "kernel", "program"]

THREADS = 256
"""Threads of a block."""

Launch = Callable[[int, np.ndarray, int], None]
"""Runs a kernel: blocks, the struct that it takes, and the address of a stream."""


def is_installed() -> bool:
    """Whether the bindings are there."""
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401
    except ImportError:
        return False
    return True


def kernel(source: Path, name: str, options: tuple[str, ...]) -> Launch:
    """Return a kernel that takes one struct, compiled for the current device.

    Args:
        source: The file that it is in.
        name: Of the kernel, which is ``extern "C"``.
        options: Of NVRTC.

    Raises:
        ImportError: If the bindings are not installed.
        RuntimeError: If the compiler or the driver refuse; and of a launch, if that fails.
    """
    from cuda.bindings import driver

    module = _module(source, options, torch.cuda.current_device())
    function = _checked(driver.cuModuleGetFunction(module, name.encode()))

    def launch(blocks: int, call: np.ndarray, stream: int) -> None:
        argument = ctypes.c_void_p(call.ctypes.data)
        _enter_context(driver)
        _checked(
            driver.cuLaunchKernel(
                *(function, blocks, 1, 1, THREADS, 1, 1),
                *(0, driver.CUstream(stream), ctypes.addressof(argument), 0),
            )
        )

    return launch


@functools.cache
def _module(source: Path, options: tuple[str, ...], device: int) -> Any:
    """Return the kernels of a file, loaded on the current device, which is the one given."""
    from cuda.bindings import driver

    image = program(source, options, torch.cuda.get_device_capability(device))
    _enter_context(driver)
    return _checked(driver.cuModuleLoadData(np.frombuffer(image, np.uint8).ctypes.data))


def program(source: Path, options: Sequence[str], capability: tuple[int, int]) -> bytes:
    """Return the machine code of a file for GPUs of a capability, or PTX where NVRTC is older.

    Raises:
        ImportError: If the bindings are not installed.
        RuntimeError: If the compiler refuses, with what it says.
    """
    from cuda.bindings import nvrtc

    own = 10 * capability[0] + capability[1]
    known = [arch for arch in _checked(nvrtc.nvrtcGetSupportedArchs()) if arch <= own]
    architecture = f"sm_{own}" if own in known else f"compute_{max(known, default=own)}"
    flags = [option.encode() for option in (*options, f"--gpu-architecture={architecture}")]
    text, file = source.read_bytes(), source.name.encode()
    made = _checked(nvrtc.nvrtcCreateProgram(text, file, 0, [], []))
    try:
        if int(nvrtc.nvrtcCompileProgram(made, len(flags), flags)[0]) != 0:
            log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, made)
            raise RuntimeError(_first_error(log.rstrip(b"\0").decode(errors="replace")))
        if own in known:
            return _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, made)
        return _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, made)
    finally:
        nvrtc.nvrtcDestroyProgram(made)


def _text(size_of: Callable[..., Any], copy: Callable[..., Any], made: Any) -> bytes:
    """Return what NVRTC has of a program."""
    text = bytes(_checked(size_of(made)))
    _checked(copy(made, text))  # writes into the bytes
    return text


def _first_error(log: str) -> str:
    """Return the line of a compiler's log that says what is wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "NVRTC failed")


def _enter_context(driver: Any) -> None:
    """Let this thread use the device that PyTorch has chosen in it.

    A thread that has called nothing but PyTorch's allocator, as those of a backward pass may have,
    has no context yet; PyTorch's is the device's primary one.
    """
    if int(_checked(driver.cuCtxGetCurrent())) == 0:
        device = _checked(driver.cuDeviceGet(torch.cuda.current_device()))
        _checked(driver.cuCtxSetCurrent(_checked(driver.cuDevicePrimaryCtxRetain(device))))


def _checked(result: tuple[Any, ...]) -> Any:
    """Return what a function of CUDA gives.

    Raises:
        RuntimeError: If it failed, with CUDA's name for that.
    """
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"CUDA said {status.name} ({int(status)})")
    return values[0] if values else None
