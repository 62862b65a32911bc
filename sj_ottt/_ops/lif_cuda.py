"""The neuron's time step as one CUDA kernel, and its surrogate's derivative as another.

The source is `lif.cu`, compiled by CuPy for the GPU at hand when it is first used. The numbers are
those of `lif.lif_step`, and the same is kept for the backward pass. What is saved is memory
traffic: each tensor is read or written once.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor
from torch.autograd.function import once_differentiable

from sj_ottt._ops.lif import LIF, LIFState, membrane_gradient
from sj_ottt._ops.ndot import NDOT_VARIANTS, NDOTState
from sj_ottt.errors import InputError

__all__ = ["check_available", "check_usable", "fused_lif_step", "usable"]

SOURCE = Path(__file__).with_name("lif.cu")
OPTIONS = ("--std=c++17", "--fmad=false")  # a fused multiply-add would round otherwise than torch
THREADS = 256
MAX_DIMS = 8
SCALARS = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
}
TRACES = {**SCALARS, torch.uint8: "Packed"}
SURROGATES = {
    sj_surrogate.Sigmoid: 0,
    sj_surrogate.ATan: 1,
    sj_surrogate.PiecewiseQuadratic: 2,
    sj_surrogate.Rect: 3,
}

_LIF = np.dtype(
    [(name, "f8") for name in ("tau", "trace_decay", "v_threshold", "v_reset", "alpha", "tiny")]
    + [(name, "i8") for name in ("hard", "decay_input", "surrogate", "ndot")]
)
_LAYOUT = np.dtype(
    [("count", "i8"), ("dims", "i8"), ("size", "i8", MAX_DIMS), ("stride", "i8", (4, MAX_DIMS))]
)
_FORWARD, _BACKWARD = (
    np.dtype([("lif", _LIF), ("layout", _LAYOUT), *[(name, "u8") for name in pointers]])
    for pointers in (
        ("x", "v", "trace", "memory", "spike", "v_new", "trace_new", "memory_new", "fired", "u"),
        ("grad", "membrane", "fired", "grad_x"),
    )
)


def _missing() -> str | None:
    """Return why the kernels cannot run in this process; None where they can."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA GPU"
    try:
        import cupy  # noqa: F401
    except ImportError:
        return "CuPy is not installed: pip install cupy-cuda13x (cupy-cuda12x for CUDA 12)"
    return None


@functools.cache
def _available() -> bool:
    return _missing() is None


def check_available() -> None:
    """Refuse `backend="cupy"` where it cannot run.

    Raises:
        InputError: Without CuPy or without a GPU.
    """
    missing = _missing()
    if missing is not None:
        raise InputError(
            f'backend="cupy" cannot run here, because {missing}; backend="auto" takes the kernels '
            'where they are, and backend="torch" never needs them'
        )


def usable(x: Tensor, surrogate_function: sj_surrogate.SurrogateFunctionBase) -> bool:
    """Whether the kernels can run here, on a tensor's device and dtype, with a surrogate."""
    return _on_gpu(x) and x.dtype in SCALARS and _supports(surrogate_function) and _available()


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _supports(surrogate_function: sj_surrogate.SurrogateFunctionBase) -> bool:
    """Whether the kernels have the derivative of a surrogate."""
    return type(surrogate_function) in SURROGATES and bool(surrogate_function.spiking)


def check_usable(x: Tensor, surrogate_function: sj_surrogate.SurrogateFunctionBase) -> None:
    """Refuse an input or a surrogate that the kernels do not know.

    Raises:
        InputError: Naming what does not fit.
    """
    if not _supports(surrogate_function):
        names = ", ".join(cls.__name__ for cls in SURROGATES)
        raise InputError(
            f'backend="cupy" does not know the surrogate {surrogate_function}: it has {names}; '
            'use one of them or backend="torch"'
        )
    if x.dtype not in SCALARS:
        raise InputError(f'backend="cupy" cannot compute in {x.dtype}: use a floating-point dtype')
    if not _on_gpu(x):
        raise InputError(
            f'backend="cupy" needs inputs on a GPU, and this one is on "{x.device}": move model '
            'and input there, or use backend="auto"'
        )


@dataclass(frozen=True)
class _Constants:
    """What a kernel takes beside tensors: the neuron, and how its trace goes on."""

    lif: LIF
    trace_decay: float
    ndot: str | None

    def pack(self, dtype: torch.dtype) -> np.ndarray:
        """Return the kernel's struct, for tensors of a dtype."""
        lif, function = self.lif, self.lif.surrogate_function
        hard = lif.v_reset is not None
        values = (lif.tau, self.trace_decay, lif.v_threshold, lif.v_reset if hard else 0.0)
        ndot = 0 if self.ndot is None else 1 + NDOT_VARIANTS.index(self.ndot)
        flags = (hard, lif.decay_input, SURROGATES[type(function)], ndot)
        return np.array((*values, function.alpha, torch.finfo(dtype).tiny, *flags), _LIF)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # CuPy cannot be traced
def fused_lif_step(
    x: Tensor, state: LIFState, lif: LIF, trace_decay: float = 0.0, ndot: str | None = None
) -> Tensor:
    """Do `lif.lif_step` in one kernel, and its backward pass in another.

    Args:
        x: Input current I[t], [N, ...], on a GPU, with any strides.
        state: That of t − 1, which becomes that of t. Its trace is in a form of
            `sj_ottt._ops.trace`, an `NDOTState`, or None.
        lif: Constants; of surrogates, those of `SURROGATES`.
        trace_decay: As in `lif.lif_step`.
        ndot: Variant of NDOT where the trace is an `NDOTState`.

    Returns:
        The spike s[t], laid out in memory like x; it carries the gradient, as the new `v` does.
    """
    constants = _Constants(lif, trace_decay, ndot)
    if torch.is_grad_enabled() and x.requires_grad:
        spike: Tensor
        spike, state["v"] = _FusedLIF.apply(x, state, constants)
        return spike
    return _forward(x, state, constants, keep=False)[0]


class _FusedLIF(torch.autograd.Function):
    """The fused step; keeps what `lif._FromState` keeps."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        state: LIFState,
        constants: _Constants,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        spike, membrane, fired = _forward(x, state, constants, keep=True)
        ctx.save_for_backward(membrane, fired)
        ctx.constants = constants
        return spike, state["v"]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_v: Tensor | None) -> tuple[Any, ...]:
        membrane, fired = ctx.saved_tensors
        from_v = None if grad_v is None else membrane_gradient(grad_v, fired, ctx.constants.lif)
        if grad is None:
            return from_v, None, None
        grad = grad.to(membrane.dtype)
        grad_x = torch.empty_like(membrane)
        call = _arguments(_BACKWARD, ctx.constants, (grad, membrane, fired), grad_x)
        tensors = {"grad": grad, "membrane": membrane, "fired": fired, "grad_x": grad_x}
        for name, tensor in tensors.items():
            call[name] = tensor.data_ptr()
        _launch("lif_backward", call, grad_x, torch.float32)
        return grad_x if from_v is None else grad_x.add_(from_v), None, None


def _forward(
    x: Tensor, state: LIFState, constants: _Constants, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Advance the state; return the spike and what the backward pass needs: membrane and spike."""
    x, v, trace, memory = x.detach(), state["v"].detach(), state["trace"], None
    if isinstance(trace, NDOTState):
        trace, memory = trace
        if memory.stride() != trace.stride():  # the kernel walks both at one pace
            memory = torch.empty_like(trace).copy_(memory)
    packed = trace is not None and trace.dtype == torch.uint8
    hard = constants.lif.v_reset is not None
    spike, v_new = torch.empty_like(x), torch.empty_like(x)
    trace_new = None if trace is None else torch.empty_like(x, dtype=trace.dtype)
    new = {
        "spike": spike,
        "v_new": v_new,
        "trace_new": trace_new,
        "memory_new": None if memory is None else torch.empty_like(x),
        "fired": torch.empty_like(x, dtype=torch.uint8) if keep and not packed else None,
        "u": torch.empty_like(x) if keep and hard else None,
    }
    call = _arguments(_FORWARD, constants, (x, v, v if trace is None else trace), spike)
    for name, tensor in {"x": x, "v": v, "trace": trace, "memory": memory, **new}.items():
        call[name] = 0 if tensor is None else tensor.data_ptr()
    _launch("lif_forward", call, x, torch.float32 if trace is None else trace.dtype)
    state["v"], state["trace"] = v_new, trace_new
    if trace_new is not None and new["memory_new"] is not None:
        state["trace"] = NDOTState(trace_new, new["memory_new"])
    membrane = v_new if new["u"] is None else new["u"]
    return spike, membrane, trace_new if packed else new["fired"]


def _arguments(
    dtype: np.dtype, constants: _Constants, inputs: tuple[Tensor, ...], out: Tensor
) -> np.ndarray:
    """Return a kernel's struct with its constants and its layout; the pointers are still zero."""
    call = np.zeros((), dtype)
    call["lif"] = constants.pack(out.dtype)
    layout = call["layout"]
    layout["count"] = out.numel()
    # Outputs come from the allocator, which aligns them; a view of an input may start anywhere.
    aligned = all(t.data_ptr() % (16 // out.itemsize * t.itemsize) == 0 for t in inputs)
    strides = [t.stride() for t in (*inputs, out)]
    if aligned and all(s == strides[-1] for s in strides) and _dense(out):
        return call
    size, merged = _merged(out.shape, strides)
    if len(size) > MAX_DIMS:
        raise InputError(f"x has {len(size)} dimensions that do not merge, more than {MAX_DIMS}")
    layout["dims"] = len(size)
    layout["size"][: len(size)] = size
    layout["stride"][:, : len(size)] = merged
    return call


def _dense(x: Tensor) -> bool:
    """Whether a tensor's elements fill its memory without gaps or overlaps."""
    if x.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])


def _merged(
    shape: tuple[int, ...], strides: list[tuple[int, ...]]
) -> tuple[list[int], list[list[int]]]:
    """Order dimensions by the output's strides and merge those that all tensors walk as one.

    Returns:
        The sizes, and for each tensor its strides; the last dimension changes fastest.
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
    return size, merged


def _launch(name: str, call: np.ndarray, like: Tensor, trace: torch.dtype) -> None:
    """Run a kernel on the device of `like`, in the stream that PyTorch uses there."""
    import cupy

    if like.numel() == 0:
        return
    lanes = 1 if call["layout"]["dims"] else 16 // like.itemsize
    blocks = -(-like.numel() // (THREADS * lanes))
    stream = torch.cuda.current_stream(like.device).cuda_stream
    with cupy.cuda.Device(like.device.index), cupy.cuda.ExternalStream(stream):
        # An array of one struct goes to the kernel by value.
        _kernel(name, SCALARS[like.dtype], TRACES[trace])((blocks,), (THREADS,), (call,))


@functools.cache
def _kernel(name: str, scalar: str, trace: str) -> Any:
    import cupy

    options = (*OPTIONS, f"-DSCALAR={scalar}", f"-DTRACE={trace}")
    code = SOURCE.read_text(encoding="utf-8")
    return cupy.RawModule(code=code, options=options).get_function(name)
