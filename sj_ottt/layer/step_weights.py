"""Weights made once per update, and their gradients added up over its time steps.

Between two updates the weights stand still. A synapse inside `online_weights` therefore makes the
weight it multiplies with (standardized, in the memory format its convolution runs fastest in)
once, adds the gradients of the time steps up, and sends the sum through the standardization once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sj_ottt._ops.blocks import give_away, take_back
from sj_ottt._ops.synapse import Product, traced_product
from sj_ottt._ops.trace import Trace
from sj_ottt.layer.synapse import StepWeight, Synapse, fast_format

__all__ = [
    "MadeWeight",
    "OnlineWeight",
    "ThroughTimeWeight",
    "online_weights",
    "step_weights",
    "through_time_weights",
]

AnyStepWeight = TypeVar("AnyStepWeight", bound=StepWeight)


class OnlineWeight:
    """The weight of one synapse between two updates of online training, and its gradients.

    Args:
        synapse: Whose weight it is.
    """

    def __init__(self, synapse: Synapse):
        self._synapse = synapse
        self._sources: tuple[object, ...] = ()
        self._made: dict[float, MadeWeight] = {}
        self._format: torch.memory_format | None = None

    def __call__(
        self, product: Product, x: Tensor, trace: Trace | None, factor: float = 1.0
    ) -> Tensor:
        """Apply the synapse to one time step."""
        self._refresh()
        if self._format is None:
            self._format = fast_format(self._synapse.weight, x, product)
        if factor not in self._made:
            again = not self._made
            self._made[factor] = MadeWeight(self._synapse, factor, self._format, again)
        made = self._made[factor]
        if self._format == torch.contiguous_format and not x.is_contiguous():
            x, trace = x.contiguous(), trace and trace.through(torch.Tensor.contiguous)
        return traced_product(product, x, trace, made.weight, made.bias, made)

    def _refresh(self) -> None:
        """Let the weight be made anew where a parameter has changed since it was."""
        parameters = self._synapse.product_parameters()
        sources = tuple((id(p), None if p is None else p._version) for p in parameters)
        if sources == self._sources:
            return
        self.finish()
        self._made = {}
        # The parameters stay alive with their ids, which no other one can get meanwhile.
        self._sources, self._parameters = sources, parameters

    def finish(self) -> None:
        """Give the parameters their gradients."""
        for made in self._made.values():
            made.finish()


class MadeWeight:
    """A weight as the product takes it, and the sums of its gradients.

    Args:
        synapse: Whose weight it is.
        factor: What it is multiplied by.
        memory_format: How it lies in memory.
        again: Whether it may lie where the last one lay.
    """

    def __init__(
        self,
        synapse: Synapse,
        factor: float = 1.0,
        memory_format: torch.memory_format | None = None,
        again: bool = False,
    ):
        # A checkpoint round the synapse would take what is saved here for a part of what it
        # computes again, and then finds the weight made.
        with torch.enable_grad(), _kept_here():
            self._whole = synapse.make_fast_weight(factor, memory_format, again)
        self.weight = self._whole.detach().requires_grad_(self._whole.requires_grad)
        self.bias = synapse.bias
        self._grads: list[Tensor | None] = [None, None]

    @property
    def total(self) -> Tensor | None:
        """Return the sum of ∇W so far, which a product may add to."""
        return self._grads[0]

    def add(self, grad_weight: Tensor | None, grad_bias: Tensor | None) -> None:
        """Take over ∇W, unless it is `total` with that of the time step, and ∇b."""
        dtypes = (self.weight.dtype, None if self.bias is None else self.bias.dtype)
        for i, new in enumerate((grad_weight, grad_bias)):
            total = self._grads[i]
            if new is not None and total is None:
                self._grads[i] = new.to(dtypes[i])
            elif new is not None and total is not None and new is not total:
                total.add_(new)

    def finish(self) -> None:
        """Give the parameters their gradients."""
        made = zip((self._whole, self.bias), self._grads, strict=True)
        grads = {tensor: grad for tensor, grad in made if tensor is not None and grad is not None}
        given, self._grads = self._grads[0], [None, None]
        if given is not None:
            give_away(given)
        if grads:
            torch.autograd.backward([*grads], [*grads.values()])
        if given is not None:  # a hook may have kept it
            take_back(given)


def _kept_here() -> AbstractContextManager[None]:
    """Keep what is saved for a backward pass out of the hands of a checkpoint round the block."""
    return torch.autograd.graph.saved_tensors_hooks(_unchanged, _unchanged)


def _unchanged(saved: Tensor) -> Tensor:
    return saved


class ThroughTimeWeight:
    """The weight of one synapse for one graph over all time steps: made once, with its graph.

    Args:
        synapse: Whose weight it is.
    """

    def __init__(self, synapse: Synapse):
        self._synapse = synapse
        self._weight, self._bias = synapse.make_fast_weight(), synapse.bias

    def __call__(
        self, product: Product, x: Tensor, trace: Trace | None, factor: float = 1.0
    ) -> Tensor:
        """Apply the synapse to one time step; autograd keeps what the exact gradient needs."""
        x = x if factor == 1 else x * factor
        weight = self._weight
        if torch._C._current_graph_task_id() != -1:
            # A checkpoint computes the step again, in a backward pass of its own, which would take
            # the graph of the one weight away from the other steps.
            with _kept_here():
                weight = self._synapse.make_fast_weight()
        return product(x, weight, self._bias)

    def finish(self) -> None:
        """Do nothing: the one backward pass reaches the parameters."""


def _compiled_parts(model: nn.Module) -> set[nn.Module]:
    """Return the modules that torch.compile runs: it makes their weights within its own graph."""
    return {
        part
        for module in model.modules()
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for part in module.modules()
    }


@contextmanager
def step_weights(
    model: nn.Module, make: Callable[[Synapse], AnyStepWeight | None]
) -> Iterator[dict[Synapse, AnyStepWeight]]:
    """Let step weights apply the synapses of a model until the end of the block.

    Args:
        model: Its `Synapse` layers take part, but for those that torch.compile runs.
        make: Makes the step weight of a synapse; None leaves it to the synapse itself.

    Yields:
        The step weight of each synapse.
    """
    compiled = _compiled_parts(model)
    synapses = [m for m in model.modules() if isinstance(m, Synapse) and m not in compiled]
    made = {m: weight for m in synapses if (weight := make(m)) is not None}
    try:
        for synapse, weight in made.items():
            synapse.step_weight = weight
        yield made
        for weight in made.values():
            weight.finish()
    finally:
        for synapse in made:
            synapse.step_weight = None
        # Autocast would hold on to its half precision copies of weights that are made no more.
        torch.clear_autocast_cache()


def _unless_made_anew(
    make: Callable[[Synapse], AnyStepWeight],
) -> Callable[[Synapse], AnyStepWeight | None]:
    """Leave out a synapse whose weight or bias is no parameter.

    A parametrization or a hook of PyTorch (`torch.nn.utils`: weight norm, spectral norm, pruning)
    makes it at every call, and may count the calls.
    """

    def make_unless(synapse: Synapse) -> AnyStepWeight | None:
        own = {"weight", "bias"} <= synapse._parameters.keys() and not is_parametrized(synapse)
        return make(synapse) if own else None

    return make_unless


@contextmanager
def online_weights(model: nn.Module) -> Iterator[None]:
    """Add the weight gradients of all synapses of a model up until the end of the block.

    Inside, each time step's backward pass comes before the next step's forward pass, and the
    parameters' `grad` is incomplete until the block ends. Hooks on the gradients of parameters
    run then, once, on what the steps have added up to.

    Args:
        model: Its `Synapse` layers take part.
    """
    with _hooks_once(model), step_weights(model, _unless_made_anew(OnlineWeight)):
        yield


@contextmanager
def _hooks_once(model: nn.Module) -> Iterator[None]:
    """Let hooks on gradients run once, at the end of a block, on the sum of its backward passes.

    These are `Tensor.register_hook`, which may return another gradient, and
    `Tensor.register_post_accumulate_grad_hook`, on the model's parameters.
    """
    held = [_HeldGradient(p) for p in model.parameters() if _hooks(p)]
    try:
        yield
    finally:
        for parameter in held:
            parameter.give_back_hooks()
    for parameter in held:
        parameter.run_hooks()


def _hooks(parameter: Tensor) -> list[dict[int, Any]]:
    """Return PyTorch's tables of a parameter's hooks on its gradient, those that hold any."""
    tables = parameter._backward_hooks, parameter._post_accumulate_grad_hooks
    return [table for table in tables if table]


class _HeldGradient:
    """A parameter whose hooks are held back, and whose gradient is put together apart.

    Args:
        parameter: It has hooks on its gradient.
    """

    def __init__(self, parameter: Tensor):
        self._parameter = parameter
        self._held = [(table, dict(table)) for table in _hooks(parameter)]
        for table, _ in self._held:
            table.clear()
        self._began = False
        self._before: Tensor | None = None
        self._handle = parameter.register_hook(self._begin)

    def _begin(self, grad: Tensor | None) -> None:
        """Set what was there before apart when the first gradient comes."""
        if not self._began:
            self._before, self._parameter.grad = self._parameter.grad, None
            self._began = True

    def give_back_hooks(self) -> None:
        """Let the hooks run again."""
        self._handle.remove()
        for table, hooks in self._held:
            table.update(hooks)

    def run_hooks(self) -> None:
        """Send the sum through the hooks and add it to what was there before."""
        if self._began:
            total, self._parameter.grad = self._parameter.grad, self._before
            if total is not None:
                torch.autograd.backward(self._parameter, total)


@contextmanager
def through_time_weights(model: nn.Module) -> Iterator[None]:
    """Make the weights of all synapses of a model once, for one graph over all time steps.

    Args:
        model: Its `Synapse` layers take part.
    """
    with step_weights(model, _unless_made_anew(ThroughTimeWeight)):
        yield
