"""Weights made once per update, and their gradients gathered over its time steps.

Between two updates the weights stand still. A synapse inside `gathered` therefore makes the
weight it multiplies with (standardized, in the memory format its convolution runs fastest in)
once, adds the gradients of the time steps up, and sends the sum through the standardization once.

Where a layer's states are small beside its weight, as deep in a network, writing the weight's
gradient costs more than computing it. The factors g and â of several steps then wait until they
fill as much memory as the weight itself, and one product over all of them takes their place.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sj_ottt.functional import Product, traced_product
from sj_ottt.trace import Trace

__all__ = ["Gather", "fast_layout", "gathered"]


WAITING_SHARE = 1.0
"""How much memory the factors that wait may take, in units of the weight they belong to."""


def fast_layout(weight: Tensor) -> Tensor:
    """Return a weight in the layout its product runs fastest in.

    On a CPU, a convolution with a channels-last weight reads and writes channels-last activations,
    which oneDNN takes as they are; the other layout it reorders in every call. On a GPU it is the
    user's choice (`model.to(memory_format=torch.channels_last)`), as it depends on the dtype.
    """
    if weight.dim() == 4 and weight.device.type == "cpu":
        return weight.contiguous(memory_format=torch.channels_last)
    return weight


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
        self._waiting: list[tuple[Tensor, Trace]] = []
        self._waiting_bytes = 0
        self._grads: list[Tensor | None] = [None, None]
        self._shown: tuple[Tensor, int, Tensor] | None = None
        self._shown_grad: Tensor | None = None

    def __call__(self, product: Product, spike: Tensor, trace: Tensor | Trace) -> Tensor:
        """Apply the synapse to one time step."""
        self._refresh()
        self._product = product
        if not (self._static_input and spike is trace) or spike.requires_grad:
            return traced_product(product, spike, trace, self._weight, self._bias, self)
        if not self._shown_again(spike):
            self._flush()
            value = product(spike, self._weight, self._bias).detach()
            self._shown = (spike, spike._version, value)
        spike, _, value = self._shown
        return traced_product(product, spike, spike, self._weight, self._bias, self, value)

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
            self._made = module.get_weight() if hasattr(module, "get_weight") else parameters[0]
        self._weight = fast_layout(self._made.detach()).requires_grad_(self._made.requires_grad)
        self._bias = module.bias
        self._sources, self._parameters = sources, parameters  # alive, so that no id is used again
        self._shown = None

    def add(self, grad: Tensor, trace: Trace) -> None:
        """Take over ∇W = g âᵀ and ∇b = g of one time step."""
        if self._shown is not None and trace.stored is self._shown[0]:
            # The same input at every step: ∇W = (Σ g) xᵀ.
            total = self._shown_grad
            self._shown_grad = grad.clone() if total is None else total.add_(grad)
            return
        size = grad.nbytes + trace.stored.nbytes
        self._waiting.append((grad, trace))
        self._waiting_bytes += size
        if self._waiting_bytes + size > WAITING_SHARE * self._weight.nbytes:
            self._flush()

    def _flush(self) -> None:
        """Turn what waits into gradients."""
        if self._shown_grad is not None:
            self._multiply(self._shown_grad, self._shown[0])
            self._shown_grad = None
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if len(waiting) == 1:
            grad, trace = waiting[0]
            self._multiply(grad, trace.decode(grad.dtype))
        elif waiting:
            grad = torch.cat([g for g, _ in waiting])
            self._multiply(grad, torch.cat([trace.decode(grad.dtype) for _, trace in waiting]))

    def _multiply(self, grad: Tensor, trace: Tensor) -> None:
        targets = (self._weight, self._bias)
        needs = [t is not None and t.requires_grad for t in targets]
        like = self._weight.detach()
        if like.dtype != grad.dtype:
            like = torch.empty_like(like, dtype=grad.dtype)
        _, *new = self._product.gradients(grad, trace.to(grad.dtype), like, False, *needs)
        for i, needed in enumerate(needs):
            if needed and self._grads[i] is None:
                self._grads[i] = new[i].to(targets[i].dtype)
            elif needed:
                self._grads[i].add_(new[i])

    def finish(self) -> None:
        """Give the parameters their gradients."""
        if not self._sources:
            return
        with torch.no_grad():
            self._flush()
        made = zip((self._made, self._bias), self._grads, strict=True)
        grads = {tensor: grad for tensor, grad in made if grad is not None}
        self._grads = [None, None]
        if grads:
            torch.autograd.backward([*grads], [*grads.values()])


@contextmanager
def gathered(model: nn.Module, static_input: bool = False) -> Iterator[None]:
    """Gather the weight gradients of all synapses of a model until the end of the block.

    Inside, each time step's backward pass comes before the next step's forward pass, and the
    parameters' `grad` is incomplete until the block ends.

    Args:
        model: Its layers of `sj_ottt.layer` take part.
        static_input: Whether every time step sees one and the same input tensor, whose first
            convolution is then done once.
    """
    synapses = [m for m in model.modules() if hasattr(m, "gather")]
    try:
        for module in synapses:
            module.gather = Gather(module, static_input)
        yield
        for module in synapses:
            module.gather.finish()
    finally:
        for module in synapses:
            module.gather = None
        # Autocast would hold on to its half precision copies of weights that are made no more.
        torch.clear_autocast_cache()
