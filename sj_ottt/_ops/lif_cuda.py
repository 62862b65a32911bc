"""The neuron's time steps as one CUDA kernel, and its surrogate's derivative as another.

The source is `lif.cu`, compiled by CuPy for the GPU at hand when it is first used. The numbers are
those of `lif.lif_step`, and the same is kept for the backward pass. What is saved is memory
traffic: each tensor is read or written once.

Both kernels are operators of PyTorch (`torch.ops.sj_ottt`), so that `torch.compile` and CUDA graphs
take them as they take PyTorch's own.
"""

import functools
import warnings
from typing import Any

import torch
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor
from torch.autograd.function import once_differentiable

from sj_ottt._ops.lif import LIF, LIFState
from sj_ottt._ops.lif_launch import SCALARS, Neuron, kernel, launch
from sj_ottt._ops.ndot import NDOT_VARIANTS, NDOTState
from sj_ottt.errors import InputError

__all__ = ["check_available", "check_usable", "fused_lif_scan", "fused_lif_step", "usable"]

SURROGATES = {
    sj_surrogate.Sigmoid: 0,
    sj_surrogate.ATan: 1,
    sj_surrogate.PiecewiseQuadratic: 2,
    sj_surrogate.Rect: 3,
}


def _missing() -> str | None:
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
def _available() -> bool:
    """Whether the kernels are there and can be compiled, which is tried once."""
    if _missing() is not None:
        return False
    try:
        kernel("lif_forward", "float", "Packed", ())
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
    return _run(x, state, lif, trace_decay, ndot)[0]


def fused_lif_scan(
    x_seq: Tensor, state: LIFState, lif: LIF, trace_decay: float = 0.0, ndot: str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Do `fused_lif_step` for K time steps in one kernel, the membrane in registers.

    Args:
        x_seq: Input currents, [K, N, ...], K from 1.
        state: That before the first step, [N, ...], which becomes that after the last one.
        lif: As in `fused_lif_step`, as are the others.
        trace_decay: As there.
        ndot: As there.

    Returns:
        The spikes [K, N, ...], which carry the gradient, as the new `v` does (that of its own
        step); and the trace after each step, [K, N, ...], in its stored form, or None where none
        is kept.
    """
    return _run(x_seq, state, lif, trace_decay, ndot)


def _run(
    x: Tensor, state: LIFState, lif: LIF, trace_decay: float, ndot: str | None
) -> tuple[Tensor, Tensor | None]:
    """Advance a state by one time step, or by several where x has one dimension more than it."""
    trace, memory = state["trace"], None
    if isinstance(trace, NDOTState):
        trace, memory = trace
    function = lif.surrogate_function
    keep = torch.is_grad_enabled() and x.requires_grad
    arguments = (
        x,
        state["v"].detach(),
        trace,
        memory,
        lif.tau,
        trace_decay,
        lif.v_threshold,
        lif.v_reset,
        function.alpha,
        lif.decay_input,
        SURROGATES[type(function)],
        0 if ndot is None else 1 + NDOT_VARIANTS.index(ndot),
        keep,
    )
    run: Any = torch.ops.sj_ottt.lif_scan
    if _is_eager(x):
        run = _Eager.apply if keep else _scan
    spike, v, _, trace_seq, trace_new, memory_new, _ = run(*arguments)
    state["v"] = v
    if trace is None:
        return spike, None
    trace_new = trace_new if x.dim() > v.dim() else trace_seq
    state["trace"] = trace_new if memory is None else NDOTState(trace_new, memory_new)
    return spike, trace_seq


def _is_eager(x: Tensor) -> bool:
    """Whether a tensor is one of numbers, and is not being traced.

    Then the kernels are called as they are: PyTorch takes longer to call an operator that was
    written in Python than a GPU takes to run it.
    """
    return type(x) is Tensor and not torch.compiler.is_compiling()


# The operators. What is not wanted is None, and empty where PyTorch asks for tensors.


_CONSTANTS = (
    "float tau, float trace_decay, float v_threshold, float? v_reset, float alpha, "
    "bool decay_input, int surrogate, int ndot"
)
torch.library.define(
    "sj_ottt::lif_scan",
    f"(Tensor x, Tensor v, Tensor? trace, Tensor? memory, {_CONSTANTS}, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "sj_ottt::lif_backward",
    f"(Tensor grad, Tensor membrane, Tensor? fired, {_CONSTANTS}) -> Tensor",
)


def _new(
    x: Tensor, v: Tensor, trace: Tensor | None, memory: Tensor | None, hard: bool, keep: bool
) -> tuple[Tensor | None, ...]:
    """Return new tensors for what `lif_scan` returns, see `_scan`.

    Those of a step are laid out like a step of x, and those of several steps one after the other.
    """
    several = x.dim() > v.dim()
    last = torch.empty_like(x[0] if several else x)

    def of_steps(dtype: torch.dtype) -> Tensor:
        if not several:
            return torch.empty_like(last, dtype=dtype)
        strides = (last.numel(), *last.stride())
        return last.new_empty_strided((x.shape[0], *last.shape), strides, dtype=dtype)

    stored = x.dtype if trace is None else trace.dtype
    from_v = keep and not several and not hard
    return (
        of_steps(x.dtype),
        last,
        of_steps(x.dtype) if keep and not from_v else None,
        None if trace is None else of_steps(stored),
        None if trace is None or not several else torch.empty_like(last, dtype=stored),
        None if memory is None else torch.empty_like(last),
        of_steps(torch.uint8) if from_v and stored != torch.uint8 else None,
    )


def _scan(
    x: Tensor, v: Tensor, trace: Tensor | None, memory: Tensor | None, *rest: Any
) -> tuple[Tensor | None, ...]:
    """Run the forward kernel; see `fused_lif_scan`.

    Returns:
        Of each step the spikes; of the last one v[t]; of each step u[t] and the trace; of the last
        of several steps the trace; of the last one NDOT's memory, and its spikes as bytes. What
        a backward pass needs is u[t]; or, after a single step with a soft reset, v[t], which the
        state keeps anyway, and the spikes, unless a packed trace has them.
    """
    neuron, keep = Neuron(*rest[:-1]), rest[-1]
    several = x.dim() > v.dim()
    out = _new(x, v, trace, memory, neuron.v_reset is not None, keep)
    spike, last, u, trace_seq, trace_new, memory_new, fired = out
    if last is None or last.numel() == 0:
        return out
    if memory is not None and trace is not None and memory.stride() != trace.stride():
        memory = torch.empty_like(trace).copy_(memory)  # the kernel walks both at one pace
    steps, x_step = (x.shape[0], x.stride(0)) if several else (1, 0)
    launch(
        "lif_forward",
        neuron,
        (x[0] if several else x, v, v if trace is None else trace),
        (x, v, trace, memory, spike, u, trace_seq, fired, last, trace_new, memory_new),
        last,
        torch.uint8 if trace is None else trace.dtype,
        (steps, x_step, last.numel()),
    )
    return out


def _backward(grad: Tensor, membrane: Tensor, fired: Tensor | None, *values: Any) -> Tensor:
    """Run the backward kernel: the gradient of the input from that of the spikes."""
    grad_x = torch.empty_like(membrane)
    if grad_x.numel():
        tensors = (grad, membrane, fired, grad_x)
        inputs = (grad, membrane, membrane if fired is None else fired)
        launch("lif_backward", Neuron(*values), inputs, tensors, grad_x, torch.uint8)
    return grad_x


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
    x, v, trace, _, *values, _ = inputs
    _, last, u, trace_seq, _, _, fired = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(tensor for tensor in output[2:] if tensor is not None))
    ctx.several, ctx.neuron = x.dim() > v.dim(), Neuron(*values)
    if ctx.several or ctx.neuron.v_reset is not None:
        ctx.save_for_backward(u, None)
    else:
        packed = trace is not None and trace.dtype == torch.uint8
        ctx.save_for_backward(last, trace_seq if packed else fired)


def _gradient(ctx: Any, grad: Tensor | None, grad_v: Tensor | None, *_: Any) -> tuple[Any, ...]:
    membrane, fired = ctx.saved_tensors
    neuron: Neuron = ctx.neuron
    grad_x = None
    if grad is not None:
        backward = _backward if _is_eager(grad) else torch.ops.sj_ottt.lif_backward
        grad_x = backward(grad.to(membrane.dtype), membrane, fired, *neuron)
    if grad_v is not None:  # of the membrane after the last step; its reset carries none
        if neuron.v_reset is not None:
            u = membrane[-1] if ctx.several else membrane
            grad_v = grad_v * (u < neuron.v_threshold)
        grad_v = grad_v / neuron.tau if neuron.decay_input else grad_v
        if ctx.several:
            grad_v = torch.cat([torch.zeros_like(membrane[1:]), grad_v.unsqueeze(0)])
        grad_x = grad_v if grad_x is None else grad_x + grad_v
    return (grad_x, *[None] * (4 + len(neuron)))


class _Eager(torch.autograd.Function):
    """`_scan` with its gradient."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
        out = _scan(*arguments)
        _keep(ctx, arguments, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return _gradient(ctx, *grads)


def _filled(x: Tensor, out: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Put empty tensors in the place of None."""
    return tuple(x.new_empty(0) if tensor is None else tensor for tensor in out)


@torch.library.impl("sj_ottt::lif_scan", "default")
@torch.compiler.disable  # type: ignore[untyped-decorator]  # CuPy cannot be traced
def _scan_operator(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _filled(x, _scan(x, *rest))


@torch.library.register_fake("sj_ottt::lif_scan")  # type: ignore[untyped-decorator]
def _fake_scan(
    x: Tensor, v: Tensor, trace: Tensor | None, memory: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    return _filled(x, _new(x, v, trace, memory, rest[3] is not None, rest[-1]))


@torch.library.impl("sj_ottt::lif_backward", "default")
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _backward_operator(*arguments: Any) -> Tensor:
    return _backward(*arguments)


@torch.library.register_fake("sj_ottt::lif_backward")  # type: ignore[untyped-decorator]
def _fake_backward(grad: Tensor, membrane: Tensor, fired: Tensor | None, *values: Any) -> Tensor:
    return torch.empty_like(membrane)


torch.library.register_autograd("sj_ottt::lif_scan", _gradient, setup_context=_keep)
