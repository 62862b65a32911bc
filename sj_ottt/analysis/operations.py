"""Every product that a network computes, seen below PyTorch's functions, and what each costs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from sj_ottt.learning.spikes import is_neuron, sends_spikes

__all__ = ["ProductCounter"]

_aten = torch.ops.aten


def _matrix(a: Tensor, b: Tensor, of_a: bool, of_b: bool) -> int:
    """Count the operations of a @ b in which the numbers of a, of b or of both are spikes."""
    a = a.unsqueeze(0) if a.dim() == 1 else a
    b = b.unsqueeze(1) if b.dim() == 1 else b
    if of_a and of_b:
        return _whole((a != 0).float() @ (b != 0).float())
    if of_b:
        return _whole(b != 0) * a.shape[-2]
    return (_whole(a != 0) if of_a else a.numel()) * b.shape[-1]


def _convolution(x: Tensor, weight: Tensor, of_x: bool, of_weight: bool, *options: Any) -> int:
    """Count the operations of a convolution in which the numbers of x are spikes, or all."""
    active = (x != 0).float() if of_x else torch.ones_like(x, dtype=torch.float32)
    ones = torch.ones_like(weight, dtype=torch.float32)
    stride, padding, dilation, transposed, output_padding, groups = options[:6]
    return _whole(
        _aten.convolution(
            active, ones, None, stride, padding, dilation, transposed, output_padding, groups
        )
    )


def _whole(numbers: Tensor) -> int:
    """Return the sum of whole numbers, without float64, which some devices lack."""
    numbers = numbers.round() if numbers.is_floating_point() else numbers
    return int(numbers.sum(dtype=torch.int64).item())


_PRODUCTS: dict[Any, tuple[Callable[..., int], int, tuple[int, ...]]] = {
    _aten.mm: (_matrix, 0, ()),
    _aten.bmm: (_matrix, 0, ()),
    _aten.mv: (_matrix, 0, ()),
    _aten.dot: (_matrix, 0, ()),
    _aten.addmm: (_matrix, 1, ()),
    _aten.baddbmm: (_matrix, 1, ()),
    _aten.addbmm: (_matrix, 1, ()),
    _aten.addmv: (_matrix, 1, ()),
    _aten.convolution: (_convolution, 0, (3, 4, 5, 6, 7, 8)),
}
"""How the operations of each product are counted, where its two factors stand among its arguments,
and which other arguments count."""

_OTHER_PRODUCTS = ("attention", "conv", "linear", "lstm", "gru", "rnn", "matmul", "mm", "bilinear")
"""What the name of a product that is not counted has in it."""

_SUMS = (_aten.add, _aten.add_, _aten.sub, _aten.sub_, _aten.rsub, _aten.cat, _aten.stack)
"""Functions whose result is made of spikes if all that enters is."""


class ProductCounter(TorchDispatchMode):
    """Counts what the products of a model cost, by the innermost module that computes them.

    Numbers are made of spikes where they come from spiking neurons through no product, and through
    no sum with anything else.

    Args:
        model: Runs inside `with counter.watching()`.

    Attributes:
        additions: Of each module, the operations in which spikes take part.
        multiplications: Of each module, the operations between real values.
        not_counted: Modules that send spikes into a product of a kind that is not known, with the
            name of PyTorch's function.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.additions: dict[str, int] = {}
        self.multiplications: dict[str, int] = {}
        self.not_counted: dict[str, str] = {}
        self._names = {m: name or type(m).__name__ for name, m in model.named_modules()}
        self._running: list[str] = []
        self._spikes = WeakIdKeyDictionary()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count everything that is computed until the end of the block."""
        handles: list[Any] = []
        for module, name in self._names.items():
            handles += (
                module.register_forward_pre_hook(lambda *_, name=name: self._running.append(name)),
                module.register_forward_hook(self._leave),
            )
            if is_neuron(module):  # before a feedback takes its output
                handles.append(module.register_forward_hook(self._fired, prepend=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self, *call: object) -> None:
        self._running.pop()

    def _fired(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        self._tell([out], sends_spikes(out))

    def _tell(self, tensors: list[Any], spikes: bool) -> None:
        """Remember of tensors whether they are made of spikes."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._spikes[tensor] = spikes

    def _made_of_spikes(self, tensor: object) -> bool:
        return bool(isinstance(tensor, Tensor) and self._spikes.get(tensor, False))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one of PyTorch's own functions, and count it if it is a product."""
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in _PRODUCTS:
            out = func(*args, **kwargs)
            self._count(packet, args)
            self._tell(tree_leaves(out), False)
            return out
        with self:
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:  # what it is made of has been seen
            return out
        out = func(*args, **kwargs)
        inputs = [
            self._made_of_spikes(leaf)
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor) and leaf.dim() > 0
        ]
        unknown = any(part in packet.__name__ for part in _OTHER_PRODUCTS)
        if unknown and any(inputs):
            self.not_counted[self._here] = packet.__name__
        spikes = bool(inputs) and (all(inputs) if packet in _SUMS else any(inputs))
        self._tell(tree_leaves(out), spikes and not unknown)
        return out

    @property
    def _here(self) -> str:
        return self._running[-1] if self._running else ""

    def _count(self, packet: Any, args: tuple[Any, ...]) -> None:
        count, first, others = _PRODUCTS[packet]
        a, b = args[first : first + 2]
        of_a, of_b = self._made_of_spikes(a), self._made_of_spikes(b)
        if packet is _aten.convolution:
            of_b = False  # its kernel is one of weights, or of numbers that count as such
        found = self.additions if of_a or of_b else self.multiplications
        operations = count(a, b, of_a, of_b, *(args[i] for i in others))
        found[self._here] = found.get(self._here, 0) + operations
