"""The neuron's time steps as one kernel, and its surrogate's derivative as another.

The source is `lif.cu`, compiled when it is first used: for the GPU at hand (`lif_gpu`), or
by a C++ compiler for the processor (`cpp`). The numbers are those of `lif.lif_step`, and the
same is kept for the backward pass. What is saved is memory traffic: each tensor is read or written
once.

Both kernels are operators of PyTorch (`torch.ops.sj_ottt`), so that `torch.compile` and CUDA graphs
take them as they take PyTorch's own.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sj_ottt._ops.blocks import is_dense, is_given_away, laid_out_like
from sj_ottt._ops.calls import is_recorded
from sj_ottt._ops.held import holders, is_only_in, of_one
from sj_ottt._ops.lif import LIF, LIFState
from sj_ottt._ops.lif_backends import SURROGATES
from sj_ottt._ops.lif_launch import Neuron, launch
from sj_ottt._ops.ndot import NDOT_VARIANTS, NDOTState
from sj_ottt._ops.scan import own

__all__ = ["fused_lif_scan", "fused_lif_step"]


def fused_lif_step(
    x: Tensor, state: LIFState, lif: LIF, trace_decay: float = 0.0, ndot: str | None = None
) -> Tensor:
    """Do `lif.lif_step` in one kernel, and its backward pass in another.

    Args:
        x: Input current I[t], [N, ...], with any strides.
        state: That of t − 1, which becomes that of t. Its trace is in a form of
            `sj_ottt._ops.trace`, an `NDOTState`, or None.
        lif: Constants; of surrogates, those of `SURROGATES`.
        trace_decay: As in `lif.lif_step`.
        ndot: Variant of NDOT where the trace is an `NDOTState`.

    Returns:
        The spike s[t], laid out in memory like x; it carries the gradient, as the new `v` does.
    """
    return _run(x, x, state, lif, trace_decay, ndot)[0]


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
    return _run(x_seq, x_seq[0], state, lif, trace_decay, ndot)


def _run(
    x: Tensor, step: Tensor, state: LIFState, lif: LIF, trace_decay: float, ndot: str | None
) -> tuple[Tensor, Tensor | None]:
    """Advance a state by one time step, or by several, of which `step` is the first."""
    trace, memory = state["trace"], None
    if isinstance(trace, NDOTState):
        trace, memory = (_fitted(part, step, step.dtype) for part in trace)
    elif trace is not None:
        trace = _fitted(trace, step, trace.dtype)
    if not _fits(state["v"], step, step.dtype):
        state["v"] = _fitted(state["v"], step, step.dtype)
    function = lif.surrogate_function
    keep = torch.is_grad_enabled() and x.requires_grad
    eager = _is_eager(x)
    spare = _spare(x, state) if eager else _NO_SPARE
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
    if eager:
        run = partial(_FusedLIF.apply, state, spare) if keep else partial(_scan, spare)
    spike, v, _, trace_seq, trace_new, memory_new, _ = run(*arguments)
    state["v"] = v
    if trace is None:
        return spike, None
    trace_new = trace_new if x.dim() > v.dim() else trace_seq
    state["trace"] = trace_new if memory is None else NDOTState(trace_new, memory_new)
    return spike, trace_seq


def _fits(part: Tensor, step: Tensor, dtype: torch.dtype) -> bool:
    """Whether a kernel, which knows addresses alone, may read a part of the state for a step."""
    return part.shape == step.shape and part.dtype == dtype and part.device == step.device


def _fitted(part: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a part of the state that fits a step; PyTorch refuses a shape that cannot."""
    if _fits(part, step, dtype):
        return part
    return part.detach().to(step.device, dtype).expand(step.shape)


def _is_eager(x: Tensor) -> bool:
    """Whether a tensor is one of numbers, and its operations are not being recorded.

    Then the kernels are called as they are: PyTorch takes longer to call an operator that was
    written in Python than a GPU takes to run it.
    """
    return type(x) is Tensor and not is_recorded()


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


class _Spare(NamedTuple):
    """What spares memory: inputs that nobody reads again but the kernel, which may write there."""

    x: Tensor | None = None
    v: Tensor | None = None
    views: bool = False  # whether results of the last step may be parts of those of all steps


_NO_SPARE = _Spare()


def _spare(x: Tensor, state: LIFState) -> _Spare:
    """Return what the kernel may write into: currents, and on a CPU the membrane before them."""
    several = x.dim() > state["v"].dim()
    if not is_dense(x if several else x[None]):
        return _NO_SPARE
    alike = state["v"].dtype == x.dtype and state["v"].stride() == x.stride()[several:]
    only = x.is_cpu and alike and is_only_in(state, "v")
    # Not detach(): PyTorch would see a view of what it is to differentiate by.
    return _Spare(x.data if is_given_away(x) else None, state["v"].data if only else None, True)


def _new(
    x: Tensor,
    v: Tensor,
    trace: Tensor | None,
    memory: Tensor | None,
    hard: bool,
    keep: bool,
    spare: _Spare = _NO_SPARE,
) -> tuple[Tensor | None, ...]:
    """Return tensors for what `lif_scan` returns, see `_scan`: spare ones, then new ones.

    Those of a step are laid out like a step of x, and those of several steps one after the other.
    """
    several, one = x.dim() > v.dim(), x[0] if x.dim() > v.dim() else x
    stored = x.dtype if trace is None else trace.dtype
    apart = keep and (several or hard)  # a membrane of each step, for the backward pass alone
    viewed = apart and spare.views and _keeps_v(hard, trace)
    if apart:
        membrane, spike, last = spare.x, None, spare.v
    else:  # an x may be of several steps, and so may the spikes
        membrane, spike, last = None, *((spare.x, spare.v) if several else (spare.v, spare.x))
    last = one if viewed else torch.empty_like(one) if last is None else last
    of_steps = partial(_of_steps, len(x) if several else None, last)
    membrane = of_steps(x.dtype) if apart and membrane is None else membrane
    trace_seq = trace_new = None if trace is None else of_steps(stored)
    if several and trace_seq is not None:
        trace_new = trace_seq[-1] if viewed else torch.empty_like(last, dtype=stored)
    return (
        of_steps(x.dtype) if spike is None else spike,
        membrane[-1] if viewed and membrane is not None else last,
        membrane,
        trace_seq,
        trace_new if several else None,
        None if memory is None else torch.empty_like(last),
        of_steps(torch.uint8) if keep and not apart and stored != torch.uint8 else None,
    )


def _of_steps(steps: int | None, one: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a new tensor [K, N, ...] of steps laid out like one; for None, [N, ...]."""
    if steps is None:
        return torch.empty_like(one, dtype=dtype)
    strides = (one.numel(), *one.stride())
    return one.new_empty_strided((steps, *one.shape), strides, dtype=dtype)


def _scan(
    spare: _Spare,
    x: Tensor,
    v: Tensor,
    trace: Tensor | None,
    memory: Tensor | None,
    *rest: Any,
) -> tuple[Tensor | None, ...]:
    """Run the forward kernel; see `fused_lif_scan`.

    Returns:
        Of each step the spikes; of the last one v[t]; of each step the membrane that a backward
        pass needs, and the trace; of the last of several steps the trace; of the last one NDOT's
        memory, and its spikes as bytes. A backward pass needs u[t]; or v[t] of a soft reset where
        it is known which neurons fired, by a packed trace, or by the bytes after a single step,
        whose v[t] the state keeps anyway.
    """
    neuron, keep = Neuron(*rest[:-1]), rest[-1]
    several, hard = x.dim() > v.dim(), neuron.v_reset is not None
    if _needs_one_order(x):
        if not is_dense(x if several else x[None]):
            one = torch.empty_like(x[0] if several else x)
            x = _of_steps(len(x) if several else None, one, x.dtype).copy_(x)
        v, trace, memory = (_in_order_of(x if several else x[None], t) for t in (v, trace, memory))
    out = _new(x, v, trace, memory, hard, keep, spare)
    spike, last, membrane, trace_seq, trace_new, memory_new, fired = out
    if last is None or last.numel() == 0:
        return out
    if memory is not None and trace is not None and memory.stride() != trace.stride():
        memory = torch.empty_like(trace).copy_(memory)  # the kernel walks both at one pace
    u, v_seq = (None, membrane) if _keeps_v(hard, trace) else (membrane, None)
    beside = (None if t is not None and t._is_view() else t for t in (last, trace_new))
    steps, x_step = (x.shape[0], x.stride(0)) if several else (1, 0)
    launch(
        "lif_forward",
        neuron,
        (x[0] if several else x, v, v if trace is None else trace),
        (x, v, trace, memory, spike, u, v_seq, trace_seq, fired, *beside, memory_new),
        last,
        torch.uint8 if trace is None else trace.dtype,
        (steps, x_step, last.numel()),
    )
    return out


def _keeps_v(hard: bool, trace: Tensor | None) -> bool:
    """Whether several steps keep v[t] for the backward pass, in the place of u[t]."""
    return not hard and trace is not None and trace.dtype == torch.uint8


def _needs_one_order(x: Tensor) -> bool:
    """Whether all tensors have to lie in memory alike: a processor takes neighbours at once."""
    return x.is_cpu


def _in_order_of(x: Tensor, other: Tensor | None) -> Any:
    """Return a tensor of one step laid out as a step of x, [K, N, ...], which is dense."""
    if other is None or other.stride() == x.stride()[1:]:
        return other
    return laid_out_like(x, other)[0]


def _backward(
    grad: Tensor, membrane: Tensor, fired: Tensor | None, *values: Any, free: bool = False
) -> Tensor:
    """Run the backward kernel: the gradient of the input from that of the spikes.

    The result may take the memory of `grad` where that is free.
    """
    given, many = grad, membrane[None]
    if _needs_one_order(grad):
        grad, fired = _in_order_of(many, grad), _in_order_of(many, fired)
    in_place = free and grad.data_ptr() == given.data_ptr() and grad.stride() == membrane.stride()
    grad_x = grad if in_place else torch.empty_like(membrane)
    if grad_x.numel():
        tensors = (grad, membrane, fired, grad_x)
        inputs = (grad, membrane, membrane if fired is None else fired)
        launch("lif_backward", Neuron(*values), inputs, tensors, grad_x, torch.uint8)
    return grad_x


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
    """Save what `_gradient` needs of a call of `lif_scan`."""
    x, v, trace, _, *values, _ = inputs
    _, last, membrane, trace_seq, _, _, fired = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(tensor for tensor in output[2:] if tensor is not None))
    ctx.several, ctx.neuron = x.dim() > v.dim(), Neuron(*values)
    hard = ctx.neuron.v_reset is not None
    apart = ctx.several or hard
    if _keeps_v(hard, trace):
        fired = trace_seq
    elif apart:  # u[t]
        fired = None
    ctx.save_for_backward(membrane if apart else last, fired)


def _gradient(
    ctx: Any, grad: Tensor | None, grad_v: Tensor | None, *_: Any, free: bool = False
) -> tuple[Any, ...]:
    """Return the gradients of the arguments of `lif_scan`, of which the currents alone have one."""
    membrane, fired = ctx.saved_tensors
    neuron: Neuron = ctx.neuron
    grad_x = None
    if grad is not None:
        eager = partial(_backward, free=free)
        backward = eager if _is_eager(grad) else torch.ops.sj_ottt.lif_backward
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


class _FusedLIF(torch.autograd.Function):
    """`_scan` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, state: LIFState, spare: _Spare, *arguments: Any
    ) -> tuple[Tensor | None, ...]:
        of_one()
        out = _scan(spare, *arguments)
        _keep(ctx, arguments, out)
        ctx.state = state if ctx.several else {}
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, grad_v: Tensor | None, *_: Tensor | None
    ) -> tuple[Any, ...]:
        free = grad is not None and holders(grad) in of_one()
        gradients = _gradient(ctx, grad, grad_v, free=free)
        own(ctx.state)  # now, when the other steps are no longer needed
        return None, None, *gradients


def _filled(x: Tensor, out: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Put empty tensors in the place of None."""
    return tuple(x.new_empty(0) if tensor is None else tensor for tensor in out)


@torch.library.impl("sj_ottt::lif_scan", "default")
@torch.compiler.disable  # type: ignore[untyped-decorator]  # it cannot be traced
def _scan_operator(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _filled(x, _scan(_NO_SPARE, x, *rest))


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
