"""Weights made once per update, and their gradients gathered over its time steps.

Between two updates the weights stand still. A synapse inside `gathered` therefore makes the
weight it multiplies with (standardized, in the memory format its convolution runs fastest in)
once, adds the gradients of the time steps up, and sends the sum through the standardization once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sj_ottt._ops.lif import Product, traced_product
from sj_ottt._ops.trace import Trace

__all__ = ["Gather", "Made", "fast_layout", "gathered", "in_synapses", "made_once", "made_weight"]

WORTH_KEEPING = 64
"""Multiplications per output number from which a static input's product is kept.

Keeping it, and the sum of its gradients, takes 8 bytes per output number. A 3x3 convolution of an
image (27 multiplications) is 0.4% of the time of a VGG's step, and would be 17% of its memory.
"""


def fast_layout(weight: Tensor) -> Tensor:
    """Return a weight in the layout its product runs fastest in.

    On a CPU, a convolution with a channels-last weight reads and writes channels-last activations,
    which oneDNN takes as they are; the other layout it reorders in every call. On a GPU it is the
    user's choice (`model.to(memory_format=torch.channels_last)`), as it depends on the dtype.
    """
    if weight.dim() == 4 and weight.device.type == "cpu":
        return weight.contiguous(memory_format=torch.channels_last)
    return weight


def made_weight(module: nn.Module) -> Tensor:
    """Return the weight that a synapse multiplies with."""
    if hasattr(module, "get_weight"):
        return module.get_weight(fast=True)
    return fast_layout(module.weight)


class Gather:
    """What one synapse holds between two updates.

    Args:
        module: Has `weight`, `bias` or None, and `get_weight()` or a weight used as it is.
        static_input: Whether the network's input is the same tensor at every step.
    """

    def __init__(self, module: nn.Module, static_input: bool):
        self._module = module
        self._static_input = static_input
        self._sources: tuple = ()
        self._grads: list[Tensor | None] = [None, None]
        self._shown: tuple[Tensor, int, Tensor] | None = None
        self._shown_grad: Tensor | None = None

    def __call__(self, product: Product, spike: Tensor, trace: Tensor | Trace) -> Tensor:
        """Apply the synapse to one time step."""
        self._refresh()
        self._product = product
        kept = self._static_input and spike is trace and not spike.requires_grad
        if not kept or self._weight[0].numel() < WORTH_KEEPING:
            return traced_product(product, spike, trace, self._weight, self._bias, self)
        if not self._shown_again(spike):
            self._multiply_shown()
            value = product(spike, self._weight, self._bias).detach()
            self._shown = (spike, spike._version, value)
        return _Shown.apply(self._weight, self._bias, self._shown[-1], self)

    def _shown_again(self, x: Tensor) -> bool:
        """Whether x is the memory of the step before, unchanged."""
        if self._shown is None:
            return False
        last, version, _ = self._shown
        return (x.data_ptr(), x.shape, x.stride(), x._version) == (
            last.data_ptr(),
            last.shape,
            last.stride(),
            version,
        )

    def _refresh(self) -> None:
        """Make the weight; again, where somebody changed a parameter since the last step."""
        module = self._module
        parameters = (module.weight, getattr(module, "gain", None), module.bias)
        sources = tuple((id(p), None if p is None else p._version) for p in parameters)
        if sources == self._sources:
            return
        self.finish()
        with torch.enable_grad():
            self._made = made_weight(module)
        self._weight = self._made.detach().requires_grad_(self._made.requires_grad)
        self._bias = module.bias
        self._sources, self._parameters = sources, parameters  # alive, so that no id is used again
        self._shown = None

    def add(self, grad_weight: Tensor | None, grad_bias: Tensor | None) -> None:
        """Take over ∇W and ∇b of one time step."""
        targets = (self._weight, self._bias)
        for i, new in enumerate((grad_weight, grad_bias)):
            if new is not None and self._grads[i] is None:
                self._grads[i] = new.to(targets[i].dtype)
            elif new is not None:
                self._grads[i].add_(new)

    def add_shown(self, grad: Tensor) -> None:
        """Take over g of one time step of a static input x: ∇W = (Σ g) xᵀ."""
        total = self._shown_grad
        self._shown_grad = grad.clone() if total is None else total.add_(grad)

    @torch.no_grad()
    def _multiply_shown(self) -> None:
        grad, self._shown_grad = self._shown_grad, None
        if grad is not None:
            needs = [t is not None and t.requires_grad for t in (self._weight, self._bias)]
            x, weight = (t.to(grad.dtype) for t in (self._shown[0], self._weight))
            self.add(*self._product.gradients(grad, x, weight, False, *needs)[1:])

    def finish(self) -> None:
        """Give the parameters their gradients."""
        if not self._sources:
            return
        self._multiply_shown()
        made = zip((self._made, self._bias), self._grads, strict=True)
        grads = {tensor: grad for tensor, grad in made if grad is not None}
        self._grads = [None, None]
        if grads:
            torch.autograd.backward([*grads], [*grads.values()])


class _Shown(torch.autograd.Function):
    """The product of a static input, known since the first step."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        weight: Tensor,
        bias: Tensor | None,
        value: Tensor,
        gather: Gather,
    ) -> Tensor:
        ctx.gather = gather
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
        ctx.gather.add_shown(grad)
        return None, None, None, None


@contextmanager
def gathered(model: nn.Module, static_input: bool = False) -> Iterator[None]:
    """Gather the weight gradients of all synapses of a model until the end of the block.

    Inside, each time step's backward pass comes before the next step's forward pass, and the
    parameters' `grad` is incomplete until the block ends.

    Args:
        model: Its layers of `sj_ottt.layer` take part.
        static_input: Whether every time step sees one and the same input tensor, whose first
            convolution is then done once where that is worth its memory (`WORTH_KEEPING`).
    """
    with in_synapses(model, lambda module: Gather(module, static_input)) as synapses:
        yield
        for module in synapses:
            module.gather.finish()


class Made:
    """The weight of one synapse for BPTT: made once, with its graph.

    Args:
        module: Has `weight`, `bias` or None, and `get_weight()` or a weight used as it is.
    """

    def __init__(self, module: nn.Module):
        self._weight, self._bias = made_weight(module), module.bias

    def __call__(self, product: Product, spike: Tensor, trace: Tensor | Trace) -> Tensor:
        """Apply the synapse to one time step; autograd keeps what the exact gradient needs."""
        return product(spike, self._weight, self._bias)


@contextmanager
def made_once(model: nn.Module) -> Iterator[None]:
    """Make the weights of all synapses of a model once, for one graph over all time steps.

    Args:
        model: Its layers of `sj_ottt.layer` take part.
    """
    with in_synapses(model, Made):
        yield


@contextmanager
def in_synapses(
    model: nn.Module, make: Callable[[nn.Module], Callable[..., Tensor]]
) -> Iterator[list[nn.Module]]:
    """Let something else apply the synapses of a model for a while.

    Args:
        model: Its layers of `sj_ottt.layer` take part.
        make: Makes what stands in for one synapse; called with product, spike and trace.

    Yields:
        The synapses.
    """
    synapses = [m for m in model.modules() if hasattr(m, "gather")]
    try:
        for module in synapses:
            module.gather = make(module)
        yield synapses
    finally:
        for module in synapses:
            module.gather = None
        # Autocast would hold on to its half precision copies of weights that are made no more.
        torch.clear_autocast_cache()
