"""How the kernels of `lif.cu` are called: given their arguments, on a GPU or on a processor."""

import ctypes
import functools
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sj_ottt._ops import cpp, lif_gpu
from sj_ottt.errors import InputError

__all__ = ["SCALARS", "TRACES", "Neuron", "host_types", "launch", "types"]

MAX_DIMS = 8
HOST_LANES = 64
SCALARS = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
}
TRACES = {**SCALARS, torch.uint8: "Packed"}
_LIF = np.dtype(
    [(name, "f8") for name in ("tau", "trace_decay", "v_threshold", "v_reset", "alpha", "tiny")]
    + [(name, "i8") for name in ("hard", "decay_input", "surrogate", "ndot")]
)
_LAYOUT = np.dtype(
    [(name, "i8") for name in ("threads", "count", "dims")]
    + [("size", "i8", MAX_DIMS), ("stride", "i8", (4, MAX_DIMS))]
)
_STEPS = [(name, "i8") for name in ("steps", "x_step", "step")]
_FORWARD, _BACKWARD = (
    np.dtype([("lif", _LIF), ("layout", _LAYOUT), *steps, *[(name, "u8") for name in pointers]])
    for steps, pointers in (
        (
            _STEPS,
            (
                *("x", "v", "trace", "memory", "spike", "u", "v_seq", "trace_seq"),
                *("fired", "v_new", "trace_new", "memory_new"),
            ),
        ),
        ([], ("grad", "membrane", "fired", "grad_x")),
    )
)


class Neuron(NamedTuple):
    """The constants that the operators take, in their order."""

    tau: float
    trace_decay: float
    v_threshold: float
    v_reset: float | None
    alpha: float
    decay_input: bool
    surrogate: int
    ndot: int


@functools.lru_cache(256)
def _constants(neuron: Neuron, dtype: torch.dtype) -> bytes:
    """Return the struct of a neuron's constants, for tensors of a dtype."""
    tau, trace_decay, v_threshold, v_reset, alpha, decay_input, surrogate, ndot = neuron
    hard, tiny = v_reset is not None, torch.finfo(dtype).tiny
    values = (tau, trace_decay, v_threshold, v_reset or 0.0, alpha, tiny)
    return struct.pack("6d4q", *values, hard, decay_input, surrogate, ndot)


@functools.lru_cache(256)
def _flags(neuron: Neuron) -> tuple[str, ...]:
    """Return what a kernel is compiled for."""
    flags: dict[str, int | float] = {
        "HARD": int(neuron.v_reset is not None),
        "DECAY_INPUT": int(neuron.decay_input),
        "SURROGATE": neuron.surrogate,
        "NDOT": neuron.ndot,
    }
    if math.frexp(neuron.tau)[0] == 0.5:  # a power of two: the compiler multiplies, exactly
        flags["TAU"] = neuron.tau
    return tuple(f"-D{name}={value}" for name, value in flags.items())


@functools.lru_cache(1024)
def _walk(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...]) -> tuple[bytes, bool]:
    """Return how a kernel walks through tensors, dimension by dimension, and whether in one line.

    Dimensions are ordered by the strides of the last tensor, which is dense, and those that all
    tensors walk as one are merged; the last dimension changes fastest.

    Raises:
        InputError: If too many dimensions are left.
    """
    order = sorted((d for d in range(len(shape)) if shape[d] != 1), key=lambda d: -strides[-1][d])
    size: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for d in order:
        pairs = list(zip(merged, strides, strict=True))
        if size and all(m[-1] == s[d] * shape[d] for m, s in pairs):
            size[-1] *= shape[d]
            for m, s in pairs:
                m[-1] = s[d]
        else:
            size.append(shape[d])
            for m, s in pairs:
                m.append(s[d])
    if len(size) > MAX_DIMS:
        raise InputError(f"x has {len(size)} dimensions that do not merge, more than {MAX_DIMS}")
    rest = [0] * (MAX_DIMS - len(size))
    numbers = [len(size), *size, *rest, *(s for m in merged for s in (*m, *rest))]
    in_one_line = not size or merged == [[1]] * len(merged)
    return struct.pack(f"{len(numbers)}q", *numbers), in_one_line


def _is_host(x: Tensor) -> bool:
    return x.is_cpu


_DENSE = bytes(8 * (1 + MAX_DIMS + 4 * MAX_DIMS))


def _layout(inputs: tuple[Tensor, ...], out: Tensor, steps: tuple[int, ...]) -> tuple[bytes, bool]:
    """Return a kernel's layout, and whether it is dense: walked in accesses of several numbers."""
    walk, in_one_line = _walk(tuple(out.shape), tuple(t.stride() for t in (*inputs, out)))
    dense, threads = in_one_line, 1
    if _is_host(out):
        threads = cpp.threads(out.numel())
    else:
        # Outputs come from the allocator, which aligns them; a view of an input may start anywhere.
        lanes = 16 // out.itemsize
        aligned = all(t.data_ptr() % (lanes * t.itemsize) == 0 for t in inputs)
        dense = in_one_line and aligned and all(step % lanes == 0 for step in steps)
    return struct.pack("2q", threads, out.numel()) + (_DENSE if dense else walk), dense


def launch(
    name: str,
    neuron: Neuron,
    inputs: tuple[Tensor, ...],
    tensors: Sequence[Tensor | None],
    out: Tensor,
    trace: torch.dtype,
    steps: tuple[int, int, int] | None = None,
) -> None:
    """Run a kernel on the device of `out`.

    Args:
        name: "lif_forward" or "lif_backward".
        neuron: The constants.
        inputs: What the kernel walks by strides of its own: three tensors of the shape of `out`.
        tensors: Those of the kernel's arguments, in their order; None and empty ones are left out.
        out: Dense, not empty, and laid out as all that the kernel writes in a time step.
        trace: How the trace is stored.
        steps: Of the forward kernel: the number of time steps, and the strides from one to the
            next in x and in what is written.
    """
    several = steps is not None and steps[0] > 1
    layout, dense = _layout(inputs, out, steps[1:] if steps and several else ())
    pointers = [0 if t is None or t.numel() == 0 else t.data_ptr() for t in tensors]
    buffer = struct.pack(f"{len(steps or ())}q{len(pointers)}Q", *(steps or ()), *pointers)
    struct_of = _BACKWARD if steps is None else _FORWARD
    call = np.frombuffer(_constants(neuron, out.dtype) + layout + buffer, struct_of)
    _run(name, call, out, trace, _flags(neuron), 16 // out.itemsize if dense else 1)


@functools.cache
def types(scalar: torch.dtype, trace: torch.dtype) -> tuple[str, str]:
    """Return what `lif.cu` is compiled for, given the dtypes of numbers and trace."""
    return f"SCALAR={SCALARS[scalar]}", f"TRACE={TRACES[trace]}"


@functools.cache
def host_types(scalar: torch.dtype, trace: torch.dtype) -> tuple[str, ...]:
    """Return what it is compiled for on a processor, whose inner loops take several vectors."""
    return *types(scalar, trace), f"LANES={HOST_LANES}"


def _run(
    name: str,
    call: np.ndarray,
    like: Tensor,
    trace: torch.dtype,
    flags: tuple[str, ...],
    lanes: int,
) -> None:
    """Run a kernel, with one thread of a GPU for so many numbers as `lanes` says."""
    if _is_host(like):
        kernel = cpp.function("lif.cu", name, *host_types(like.dtype, trace))
        kernel(ctypes.c_void_p(call.ctypes.data))
    else:
        lif_gpu.run(name, call, types(like.dtype, trace), flags, like, lanes)
