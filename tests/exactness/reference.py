"""One update of a spiking network by hand: autograd in float64, the traces written out.

Nothing of the package is imported here. A signal is a value and a trace. A synapse is one line:

    y = op(s, W.detach()) + op(â, W) − op(â, W).detach() + b

whose value is W s + b, and whose gradients are ∇s = Wᵀ g, ∇W = g âᵀ and ∇b = g.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.exactness.program import Program, Step

__all__ = ["NoMeaning", "Reference", "Update", "update"]


class NoMeaning(Exception):
    """The rule gives what the network does to a trace no meaning, so that it must be refused."""


@dataclass(frozen=True)
class Signal:
    """A value, which carries the gradient, and its trace, which carries none.

    A real-valued tensor is its own trace, and so are the spikes under SLTT; under BPTT there are
    no traces, and for a tensor the line above is ordinary autograd.
    """

    value: Tensor
    own_trace: Tensor | None = None

    @property
    def trace(self) -> Tensor:
        return self.value.detach() if self.own_trace is None else self.own_trace


@dataclass
class Reference:
    """A program, run step by step.

    Attributes:
        program: The network.
        parameters: Leaf tensors by "module.name".
        buffers: Running statistics, which batch norm moves on.
        rule: "ottt", "sltt", "ndot", "ndot code" or "bptt".
        masks: Of each dropout module, the factors that it drew: one mask, or one for each call.
        broken: A way to do it wrong, to see that the comparison notices; None to do it right.
    """

    program: Program
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    rule: str
    masks: dict[str, Any] = field(default_factory=dict)
    broken: str | None = None
    state: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    fired: dict[str, list[Tensor]] = field(default_factory=dict)
    last: dict[str, Signal] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Run one time step; return the values of the outputs."""
        signals = {"x": Signal(x)}
        without_gradient = self.program.within("no_grad")
        for number, step in enumerate(self.program.steps):
            inputs = [signals[name] for name in step.inputs]
            with torch.set_grad_enabled(number not in without_gradient):
                found = getattr(self, step.kind)(step, *inputs)
            found = [found] if isinstance(found, Signal) else found
            signals.update(zip(step.outs, found, strict=True))
        self.last = signals
        return [signals[name].value for name in self.program.outputs]

    def parameter(self, step: Step, name: str) -> Tensor | None:
        return self.parameters.get(f"{step.module}.{name}")

    def synapse(self, step: Step, x: Signal) -> Signal:
        weight, bias = self.parameter(step, "weight"), self.parameter(step, "bias")
        if step.options.get("standardized"):
            weight = standardize(weight, self.parameter(step, "gain"))
        return Signal(self._product(step.options["op"], x, weight, bias))

    def _product(self, op: Callable[..., Tensor], x: Signal, weight: Tensor, bias: Any) -> Tensor:
        trace = x.value.detach() if self.broken == "spike" else x.trace
        traced = op(trace, weight)
        if self.rule == "bptt":
            return plus_bias(op(x.value, weight), bias, weight)
        return plus_bias(op(x.value, weight.detach()) + traced - traced.detach(), bias, weight)

    def neuron(self, step: Step, x: Signal) -> Signal:
        options = step.options
        tau, threshold = options.get("tau", 2.0), options.get("v_threshold", 1.0)
        v_reset, lam = options.get("v_reset"), 1 - 1 / tau
        rest = 0.0 if v_reset is None else v_reset
        zeros = torch.zeros_like(x.value)
        start = {"v": zeros + rest, "trace": zeros, "memory": zeros}
        before = self.state.get(step.module, start)
        v = before["v"] if self.rule == "bptt" else before["v"].detach()
        current = x.value / tau if options.get("decay_input") else x.value
        u = rest + lam * (v - rest) + current
        spike = fire(u - threshold, options.get("surrogate", "sigmoid"))
        s = spike.detach()
        after = u - threshold * s if v_reset is None else (1 - s) * u + s * v_reset
        self.fired.setdefault(step.module, []).append(s)
        trace, memory = self._trace(before, s, after.detach(), lam, threshold)
        self.state[step.module] = {"v": after, "trace": trace, "memory": memory}
        return Signal(spike, trace if self.rule.startswith(("ottt", "ndot")) else None)

    def _trace(
        self, before: dict[str, Tensor], s: Tensor, v: Tensor, lam: float, threshold: float
    ) -> tuple[Tensor, Tensor]:
        """â[t], and what NDOT needs for the next one."""
        if self.rule == "ndot":  # â[t] = e[t−1] â[t−1] + s[t], e[t] = v[t] / v[t−1] within [−λ, λ]
            trace = before["memory"] + s
            tiny = torch.full_like(v, torch.finfo(v.dtype).tiny)
            v_before = before["v"].detach()
            ratio = v / torch.where(v_before == 0, tiny, v_before)
            return trace, ratio.clamp(-lam, lam) * trace
        if self.rule == "ndot code":  # e[t] = q[t] / q[t−1], q = v − V_th s; no number counts as λ
            q = v - threshold * s
            ratio = q / before["memory"]
            ratio = torch.where(ratio.isfinite(), ratio, lam).clamp(-lam, lam)
            return ratio * before["trace"] + s, q
        trace = lam * before["trace"] + s
        return (lam * trace + s if self.broken == "twice" else trace), s

    def map(self, step: Step, *inputs: Signal) -> Any:
        return self._of_both(step.options["op"], inputs)

    max_pool = map  # each by its own maximum

    def _of_both(self, op: Callable[..., Any], inputs: tuple[Signal, ...]) -> Any:
        values = op(*[x.value for x in inputs])
        if all(x.own_trace is None for x in inputs):
            traces: Any = None
        else:
            with torch.no_grad():
                traces = op(*[x.trace for x in inputs])
        if isinstance(values, Tensor):
            return Signal(values, traces)
        return [Signal(v, None if traces is None else traces[i]) for i, v in enumerate(values)]

    def function(self, step: Step, *inputs: Signal) -> Any:
        if any(x.own_trace is not None for x in inputs):
            raise NoMeaning(step.out)
        return Signal(step.options["op"](*[x.value for x in inputs]))

    def norm(self, step: Step, x: Signal) -> Signal:
        """Batch norm of a current: statistics of this batch, or frozen ones in evaluation."""
        if x.own_trace is not None:
            raise NoMeaning(step.out)
        value, eps = x.value, 1e-5
        dims = [d for d in range(value.dim()) if d != 1]
        mean, var = (self.buffers[f"{step.module}.running_{k}"] for k in ("mean", "var"))
        if not self._in_evaluation(step):
            count = value.numel() / value.shape[1]
            batch_var, batch_mean = torch.var_mean(value, dims, correction=0)
            with torch.no_grad():
                unbiased = batch_var * count / (count - 1)
                self.buffers[f"{step.module}.running_mean"] = 0.9 * mean + 0.1 * batch_mean
                self.buffers[f"{step.module}.running_var"] = 0.9 * var + 0.1 * unbiased
            mean, var = batch_mean, batch_var
        shape = [1, -1, *[1] * (value.dim() - 2)]
        unit = (value - mean.view(shape)) / (var.view(shape) + eps).sqrt()
        weight, bias = self.parameter(step, "weight"), self.parameter(step, "bias")
        return Signal(unit * weight.view(shape) + bias.view(shape))

    def _in_evaluation(self, step: Step) -> bool:
        evaluated = {self.program.steps[number].module for number in self.program.within("eval")}
        return bool(step.options.get("eval")) or step.module in evaluated

    def dropout(self, step: Step, x: Signal) -> Signal:
        if self._in_evaluation(step):
            return x
        mask = self.masks[step.module]
        if isinstance(mask, list):  # PyTorch's dropout draws at every call
            if x.own_trace is not None:
                raise NoMeaning(step.out)
            self.calls[step.module] = self.calls.get(step.module, -1) + 1
            mask = mask[self.calls[step.module]]
        return self._of_both(lambda value: value * mask, (x,))

    def feedback(self, step: Step, x: Signal) -> Signal:
        """Add W s[t−1] of a later signal; online, no gradient flows back in time."""
        if not self.last:
            return x
        last = self.last[step.options["source"]]
        value = last.value if self.rule == "bptt" else last.value.detach()
        weight, bias = self.parameter(step, "weight"), self.parameter(step, "bias")
        product = self._product(step.options["op"], Signal(value, last.own_trace), weight, bias)
        return Signal(x.value + product)

    def detach(self, step: Step, x: Signal) -> Signal:
        return Signal(x.value.detach(), x.own_trace)


def fire(x: Tensor, surrogate: str) -> Tensor:
    """1[x ≥ 0], with the derivative of a smooth function h: the value of h cancels exactly."""
    if surrogate == "sigmoid":
        h = 1 / (1 + torch.exp(-4 * x))
    else:  # "atan"
        h = torch.atan(torch.pi / 2 * 2 * x) / torch.pi
    return (x >= 0).to(x) + (h - h.detach())


def plus_bias(y: Tensor, bias: Tensor | None, weight: Tensor) -> Tensor:
    """Add a number to each feature of a linear layer, or to each channel of a convolution."""
    if bias is None:
        return y
    return y + bias.view(-1, *[1] * (weight.dim() - 2))


def standardize(weight: Tensor, gain: Tensor | None, eps: float = 1e-4) -> Tensor:
    """Ŵ = gain (W − mean) / sqrt(var · fan_in + eps), per output channel."""
    rows = weight.flatten(1)
    scale = (rows.var(1, keepdim=True) * rows.shape[1] + eps).sqrt()
    unit = ((rows - rows.mean(1, keepdim=True)) / scale).view_as(weight)
    return unit if gain is None else gain * unit


@dataclass(frozen=True)
class Update:
    """What an update leaves: losses, gradients, parameters, running statistics.

    `moved` has the names of the parameters that had a gradient other than zero in some step.
    """

    losses: Tensor
    grads: dict[str, Tensor | None]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    moved: set[str]


def update(
    reference: Reference,
    x_seq: Tensor,
    loss_at: Callable[[list[Tensor], int], Tensor],
    online: bool,
    lr: float,
) -> Update:
    """Train on [T, N, ...]: one backward pass a step, or one through time under BPTT."""
    parameters, losses, total = reference.parameters, [], torch.zeros((), dtype=x_seq.dtype)
    moved: set[str] = set()
    learning = [p for p in parameters.values() if p.requires_grad]
    for t, x in enumerate(x_seq):
        if online:
            for p in learning:
                p.grad = None
        loss = loss_at(reference(x), t)
        losses.append(loss.detach())
        if reference.rule == "bptt":
            total = total + loss
        elif loss.requires_grad:
            loss.backward()
        moved |= {name for name, p in parameters.items() if p.grad is not None and p.grad.any()}
        if online:
            step(learning, lr)
    if reference.rule == "bptt":
        total.backward()
        moved = {name for name, p in parameters.items() if p.grad is not None and p.grad.any()}
    if not online:
        step(learning, lr)
    return Update(
        torch.stack(losses),
        {name: p.grad for name, p in parameters.items()},
        {name: p.detach() for name, p in parameters.items()},
        reference.buffers,
        moved,
    )


@torch.no_grad()
def step(parameters: list[Tensor], lr: float) -> None:
    """Plain gradient descent."""
    for p in parameters:
        if p.grad is not None:
            p -= lr * p.grad
