"""What a neuron hands on in training: its spike and its trace."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from sj_ottt._ops.trace import LinearMap, Trace
from sj_ottt.errors import InputError

__all__ = ["Pair"]

_REMEDY = "use a layer of sj_ottt.layer, or take x[0], the spike alone"


class Pair(list[Tensor]):
    """What a neuron hands on in training: a spike s[t] and its trace â[t], of one shape.

    To Python it is the list [spike, trace] of two tensors, which is what SpikingJelly's containers
    look for. It cannot be changed or compared, and the trace is made a tensor only when it is asked
    for as an item.

    Residual connections may add pairs: the trace of a sum is the sum of the traces. Added to a
    tensor, which is a current and no spikes, it counts as its spike. Linear functions of PyTorch
    that have no weight (`torch.flatten`, `torch.cat`, average pooling …) are taken of both, as
    functions or methods; a tensor that `torch.cat` joins to a pair is its own trace. Any other
    function is refused.

    Args:
        spike: s[t], [N, ...], which carries the gradient.
        trace: â[t], which carries none.

    Raises:
        InputError: If something is done to it that would leave the trace behind.
    """

    def __init__(self, spike: Tensor, trace: Trace):
        super().__init__()  # the list itself stays empty: a trace need not be a tensor yet
        self.spike = spike
        self.trace = trace

    @classmethod
    def of(cls, items: Sequence[Tensor]) -> Self:
        """Return a pair as it is, and [spike, trace] of SpikingJelly's neurons as a pair.

        Raises:
            InputError: If it is anything but two tensors.
        """
        if isinstance(items, cls):
            return items
        if len(items) != 2 or not all(isinstance(item, Tensor) for item in items):
            kinds = ", ".join(type(item).__name__ for item in items)
            raise InputError(
                f"[{kinds}] is not what a neuron hands on, the two tensors [spike, trace]: "
                "give a pair of them, or one tensor"
            )
        spike, trace = items
        return cls(spike, Trace(trace))

    @property
    def values(self) -> Tensor:
        """The trace as an ordinary tensor, in the spike's dtype."""
        return self.trace.decode(self.spike.dtype)

    def through(self, linear_map: LinearMap) -> Self:
        """Return the pair behind a linear map; the trace waits until it is needed."""
        return type(self)(linear_map(self.spike), self.trace.through(linear_map))

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Tensor]:
        yield self.spike
        yield self.values

    def __reversed__(self) -> Iterator[Tensor]:
        yield self.values
        yield self.spike

    def __getitem__(self, index: Any) -> Any:
        return self.spike if index == 0 else [*self][index]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.spike, self.trace)

    def __repr__(self) -> str:
        return f"Pair({self.spike!r}, {self.values!r})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Tensor],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Tensor | Self:
        """Apply a linear function to the spike and to the trace."""
        kwargs = kwargs or {}
        name = func.__name__
        if name in ("add", "add_") and _has_current(name, args, kwargs):
            return func(*_spikes(args), **_spikes(kwargs))
        # view(dtype) reads the same bits as other numbers.
        reinterprets = name == "view" and any(isinstance(arg, torch.dtype) for arg in args)
        if name not in _LINEAR or reinterprets or "out" in kwargs:
            raise InputError(
                f"{name}() was called on what a neuron hands on, [spike, trace], and the trace "
                f"would not follow it: {_REMEDY}"
            )
        spike = func(*_spikes(args), **_spikes(kwargs))
        with torch.no_grad():
            return cls(spike, Trace(func(*_traces(args), **_traces(kwargs))))

    def __getattr__(self, name: str) -> Any:
        if name in _FACTS:
            return getattr(self.spike, name)
        if name.startswith("__") or name in ("spike", "trace"):  # a copy asks before they are set
            raise AttributeError(name)
        method = getattr(Tensor, name)
        if not callable(method):  # such as grad_fn or T
            raise InputError(f"[spike, trace], what a neuron hands on, has no {name}: {_REMEDY}")
        return lambda *args, **kwargs: self.__torch_function__(method, (), (self, *args), kwargs)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Tensor):
            return self.spike + other
        if isinstance(other, int) and other == 0:  # where sum() starts
            return self
        if not isinstance(other, list | tuple):
            raise InputError(f"{other!r} cannot be added to [spike, trace]: {_REMEDY}")
        other = Pair.of(other)
        with torch.no_grad():
            trace = Trace(self.values + other.values)
        return Pair(self.spike + other.spike, trace)

    __radd__ = __iadd__ = __add__

    def __mul__(self, factor: Any) -> Any:
        if not isinstance(factor, int | float):
            return self.__torch_function__(Tensor.mul, (), (self, factor))  # refused there
        with torch.no_grad():
            trace = Trace(self.values * factor)
        return Pair(self.spike * factor, trace)

    __rmul__ = __imul__ = __mul__


_COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__")
_CHANGES = ("__setitem__", "__delitem__", "append", "clear", "extend", "insert", "pop", "remove")
_OTHERS = ("copy", "count", "index", "reverse", "sort")


def _refuse(name: str) -> Callable[..., NoReturn]:
    """Return what raises where a method of lists would act on the empty list below a pair."""

    def method(self: Pair, *args: object, **kwargs: object) -> NoReturn:
        raise InputError(
            f"{name} of lists does not exist for [spike, trace], what a neuron hands on: "
            "take x[0], the spike, or list(x), both as ordinary tensors"
        )

    return method


for _name in (*_COMPARISONS, *_CHANGES, *_OTHERS):
    setattr(Pair, _name, _refuse(_name))

_FACTS = ("shape", "dtype", "device", "size", "dim", "ndim", "numel", "is_cuda", "requires_grad")
"""What a pair answers as its spike does."""

_LINEAR = {
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "add",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "cat",
    "flatten",
    "interpolate",
    "mean",
    "movedim",
    "permute",
    "reshape",
    "squeeze",
    "sum",
    "transpose",
    "unflatten",
    "unsqueeze",
    "view",
}


def _has_current(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a sum is a current: one of its terms is a tensor, the one that is changed in place.

    Raises:
        InputError: If a number is added, which is neither a current nor spikes.
    """
    terms = [*args[:2], *(kwargs[key] for key in ("input", "other") if key in kwargs)]
    for term in terms:
        if not isinstance(term, Pair | Tensor):
            raise InputError(f"{term!r} cannot be added to [spike, trace]: {_REMEDY}")
    tensors = [isinstance(term, Tensor) for term in terms]
    return tensors[0] if name == "add_" else any(tensors)


def _spikes(args: Any) -> Any:
    """Return arguments with the spike in the place of each pair."""
    return _replace_pairs(args, lambda pair: pair.spike)


def _traces(args: Any) -> Any:
    """Return arguments with the values of the trace in the place of each pair."""
    return _replace_pairs(args, lambda pair: pair.values)


def _replace_pairs(arg: Any, part_of: Callable[[Pair], Tensor]) -> Any:
    if isinstance(arg, Pair):
        return part_of(arg)
    if type(arg) in (list, tuple):  # not a torch.Size
        return [_replace_pairs(item, part_of) for item in arg]
    if type(arg) is dict:
        return {key: _replace_pairs(item, part_of) for key, item in arg.items()}
    return arg
