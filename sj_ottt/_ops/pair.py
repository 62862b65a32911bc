"""What a neuron hands on in training: its spike and its trace."""

import dis
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from sj_ottt._ops import functions
from sj_ottt._ops.calls import in_checkpoint, modules_being_called
from sj_ottt._ops.synapse import traced_product
from sj_ottt._ops.trace import LinearMap, Trace
from sj_ottt.errors import InputError

__all__ = ["Pair"]

_REMEDY = "use a layer of sj_ottt.layer, or take x[0], the spike alone"


class Pair(list[Tensor]):
    """What a neuron hands on in training: a spike s[t] and its trace â[t], of one shape.

    To Python it is the list [spike, trace] of two tensors, which is what SpikingJelly's containers
    look for. It cannot be changed or compared, and the trace is made a tensor only when it is asked
    for as an item.

    To PyTorch it is a tensor of spikes, and a function that is called on it, by any of its names,
    does one of these:

    - A linear map without weights (sums, factors, other shapes, parts, joins, padding, averages)
      is taken of both. A real-valued tensor that is added or joined is its own trace.
    - A product with a weight (linear, a convolution, transposed or not, `*`, `@` or `/` with a
      parameter) gives a tensor, W s + b, whose weight gradient takes the trace: ∇W = g âᵀ.
    - Maximum pooling is taken of each by its own maximum, as in SpikingJelly.
    - Where the trace is the spike itself (SLTT), any other function takes the spike and gives a
      tensor: that is exact.
    - Anything else is refused. (Its numbers and its gradient may be asked for: `item()`,
      `backward()` of a penalty on spikes, `register_hook`.)

    Args:
        spike: s[t], [N, ...], which carries the gradient.
        trace: â[t], which carries none.
        spike_suffices: Whether the trace is the spike itself (`Rule.spike_suffices`).
        factor: What `spike` is still to be multiplied by.

    Raises:
        InputError: If something is done to it that would leave the trace behind.
    """

    def __init__(
        self, spike: Tensor, trace: Trace, spike_suffices: bool = False, factor: float = 1.0
    ):
        super().__init__()  # the list itself stays empty: a trace need not be a tensor yet
        self._plain = spike
        self._factor = factor
        self.trace = trace
        self.spike_suffices = spike_suffices

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
    def spike(self) -> Tensor:
        """The spike, which carries the gradient."""
        if self._factor == 1:
            return self._plain
        spike = self._plain * self._factor
        if torch.is_grad_enabled():  # or the gradient would end here from now on
            self._plain, self._factor = spike, 1.0
        return spike

    def scaled(self, factor: float) -> Self:
        """Return the pair times a factor, which waits until the spike or the trace is needed."""
        trace = self.trace.scaled(factor)
        return type(self)(self._plain, trace, self.spike_suffices, self._factor * factor)

    def without_factor(self) -> tuple[Tensor, Trace, float]:
        """Return spike and trace and the factor of both: what a weight may be multiplied by."""
        if self._factor != self.trace.factor:
            return self.spike, self.trace, 1.0
        return self._plain, replace(self.trace, factor=1.0), self._factor

    @property
    def values(self) -> Tensor:
        """The trace as an ordinary tensor, in the spike's dtype."""
        return self.trace.decode(self.spike.dtype)

    def refuse_cut(self, name: str) -> None:
        """Refuse a function that would lose the gradient of what comes before.

        Args:
            name: The function's.

        Raises:
            InputError: If gradients are switched off and the spike carries one.
        """
        if torch.is_grad_enabled():
            return
        if in_checkpoint():
            reason = "runs in torch.utils.checkpoint without gradients"
            raise _refusal(name, reason, "leave the checkpoint out, or give use_reentrant=False")
        if self.spike.requires_grad:
            reason = "runs without gradients, so that what comes before would not learn"
            remedy = "leave torch.no_grad() out, or say x.detach() before it"
            raise _refusal(name, reason, remedy)

    def through(self, linear_map: LinearMap) -> Self:
        """Return the pair behind a linear map; the trace waits until it is needed."""
        spike, trace = linear_map(self._plain), self.trace.through(linear_map)
        return type(self)(spike, trace, self.spike_suffices, self._factor)

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Tensor]:
        yield self.spike
        yield self.values

    def __reversed__(self) -> Iterator[Tensor]:
        yield self.values
        yield self.spike

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            return self.spike if index == 0 else [*self][index]
        if not isinstance(index, slice):
            return self.__torch_function__(Tensor.__getitem__, (), (self, index))
        if index == slice(None):
            return [*self]
        raise InputError(
            "x[a:b] of what a neuron hands on could mean the list [spike, trace] or the batch: "
            "write x[a:b, ...] for a part of the batch"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.spike, self.trace, self.spike_suffices)

    def __repr__(self) -> str:
        return f"Pair({self.spike!r}, {self.values!r})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Do what the function is to spikes and their trace; see `sj_ottt._ops.functions`."""
        kwargs = kwargs or {}
        name = func.__name__
        pairs = _pairs_in([*args, *kwargs.values()])
        if name in functions.FACTS or name in functions.CONSTANTS:
            with torch.no_grad():
                return func(*_spikes(args), **_spikes(kwargs))
        if name in functions.READS:
            return func(*_spikes(args), **_spikes(kwargs))
        if name != "detach":
            for pair in pairs:
                pair.refuse_cut(name)
        if name in functions.SYNAPSES:
            return _synapse(name, args, kwargs)
        reason = functions.not_linear(name, args, kwargs)
        linear = name in functions.LINEAR or name in functions.MAX_POOLS
        if linear and reason is None:
            return _mapped(func, args, kwargs, pairs)
        if name in functions.PRODUCTS and reason is None and len(pairs) == 1:
            product = _product(func, args, kwargs, pairs)
            if product is not None:
                return product
            reason = "multiplies by what the network computes from its input"
        return _by_the_spike(func, args, kwargs, pairs, reason)

    def __getattr__(self, name: str) -> Any:
        if name in ("trace", "spike_suffices") or name.startswith("_"):
            raise AttributeError(name)  # a copy asks before they are set
        if name in functions.LINEAR_PROPERTIES:
            return self.through(operator.attrgetter(name))
        attribute = getattr(Tensor, name)
        if not callable(attribute):  # such as grad_fn or is_cuda
            if name in functions.FACTS:
                return getattr(self.spike, name)
            raise InputError(f"[spike, trace], what a neuron hands on, has no {name}: {_REMEDY}")
        return lambda *args, **kwargs: self.__torch_function__(attribute, (), (self, *args), kwargs)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, int) and other == 0:  # where sum() starts
            return self
        return self.__torch_function__(Tensor.add, (), (self, _term(other)))

    def __sub__(self, other: Any) -> Any:
        return self.__torch_function__(Tensor.sub, (), (self, _term(other)))

    def __rsub__(self, other: Any) -> Any:
        return self.__torch_function__(Tensor.sub, (), (_term(other), self))

    def __mul__(self, factor: Any) -> Any:
        return self.__torch_function__(Tensor.mul, (), (self, factor))

    def __truediv__(self, divisor: Any) -> Any:
        return self.__torch_function__(Tensor.div, (), (self, divisor))

    def __matmul__(self, factor: Any) -> Any:
        return self.__torch_function__(Tensor.matmul, (), (self, factor))

    def __neg__(self) -> Any:
        return self.__torch_function__(Tensor.neg, (), (self,))

    def __pos__(self) -> Self:
        return self

    __radd__ = __iadd__ = __add__
    __rmul__ = __imul__ = __mul__
    __isub__, __itruediv__ = __sub__, __truediv__


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


_OPERATORS = ("abs", "and", "floordiv", "invert", "mod", "or", "pow", "rfloordiv", "rmod", "rpow")


def _as_tensor(name: str) -> Callable[..., Any]:
    """Return an operator that does what the function of tensors of that name does to a pair."""

    def operate(self: Pair, *args: object) -> Any:
        return self.__torch_function__(getattr(Tensor, name), (), (self, *args))

    return operate


for _name in (*_OPERATORS, "rmatmul", "rtruediv", "xor"):
    setattr(Pair, f"__{_name}__", _as_tensor(f"__{_name}__"))
Pair.__float__ = lambda self: float(self.spike)  # type: ignore[attr-defined]


def _by_the_spike(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    pairs: Sequence[Pair],
    reason: str | None,
) -> Any:
    """Do what no trace can follow: exact where the trace is the spike, and refused elsewhere.

    Raises:
        InputError: With the reason, where there is one.
    """
    name = func.__name__
    if name in ("add_", "sub_") and isinstance(args[0], Tensor) and _is_statement():
        return _added_in_place(name, *args)
    if name.endswith("_") and not name.endswith("__"):
        raise _refusal(name, "changes a tensor in place", f"use {name[:-1]} and its result")
    dropout = "dropout" in name
    if dropout and not functions.drops(*args, **kwargs):
        return pairs[0]
    if all(pair.spike_suffices for pair in pairs) and "out" not in kwargs:
        return func(*_spikes(args), **_spikes(kwargs))
    if dropout:
        reason = "draws one mask for the spikes and another for the trace"
        raise _refusal(name, reason, "use sj_ottt.layer.Dropout")
    raise _refusal(name, reason)


def _refusal(name: str, reason: str | None, remedy: str = _REMEDY) -> InputError:
    """Return the error for a function that the trace cannot follow."""
    because = f" ({name} {reason})" if reason else ""
    return InputError(
        f"{name}() was called{_inside()} on what a neuron hands on, [spike, trace], and the trace "
        f"would not follow it{because}: {remedy}"
    )


def _inside() -> str:
    """Say in which module we are."""
    name = next((type(module).__name__ for module in modules_being_called()), None)
    return f" in {name}" if name else ""


def _mapped(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    pairs: Sequence[Pair],
) -> Any:
    """Take a map of the spikes and of the traces."""
    spikes = func(*_spikes(args), **_spikes(kwargs))
    if isinstance(spikes, Tensor):
        return _pair_of(spikes, func, args, kwargs, pairs, None)
    return tuple(
        _pair_of(spike, func, args, kwargs, pairs, number) for number, spike in enumerate(spikes)
    )


def _pair_of(
    spike: Tensor,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    pairs: Sequence[Pair],
    number: int | None,
) -> Pair:
    """Return the pair of a function's result, or of one of its results."""

    def traced(part: Callable[[Pair], Tensor]) -> Tensor:
        found = func(
            *functions.replace_in(args, Pair, part), **functions.replace_in(kwargs, Pair, part)
        )
        trace: Tensor = found if number is None else found[number]
        return trace

    if not spike.is_floating_point():
        raise _refusal(func.__name__, "gives numbers that have no gradient")
    suffices = all(pair.spike_suffices for pair in pairs)
    if len(pairs) == 1 and not functions.tensors_in([*args, *kwargs.values()]):
        return Pair(spike, pairs[0].trace.through(lambda v: traced(lambda pair: v)), suffices)
    with torch.no_grad():
        return Pair(spike, Trace(traced(lambda pair: pair.values)), suffices)


def _product(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    pairs: Sequence[Pair],
) -> Any:
    """Multiply by constants, which gives a pair, or by weights, which gives a tensor.

    Returns:
        None where a factor that learns is no weight.
    """
    tensors = functions.tensors_in([*args, *kwargs.values()])
    learning = [tensor for tensor in tensors if tensor.requires_grad]
    if not learning:
        return _mapped(func, args, kwargs, pairs)
    if not all(map(functions.is_weight, learning)):
        return None
    # The value and the spike's gradient from the spike, the weight's gradient from the trace.
    value = func(*_spikes(_without_gradients(args)), **_spikes(_without_gradients(kwargs)))
    traced = func(*_traces(args), **_traces(kwargs))
    return value + (traced - traced.detach())


def _synapse(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Apply a linear or convolutional function of PyTorch: one traced product."""
    x, weight, bias, product, pad = functions.synapse_call(name, args, kwargs)
    if not isinstance(x, Pair) or isinstance(weight, Pair) or isinstance(bias, Pair):
        raise _refusal(name, "takes it for a weight")
    if weight.grad_fn is not None and functions.is_made_of_spikes(weight):
        raise _refusal(name, "has a weight that the network computes from its spikes")
    x = x if pad is None else x.through(pad)
    batched = len(product.stride) + 2 if product.stride else 2
    if x.spike.dim() >= batched:
        return traced_product(product, x.spike, x.trace, weight, bias)
    x = x.through(operator.methodcaller("unsqueeze", 0))
    return traced_product(product, x.spike, x.trace, weight, bias).squeeze(0)


def _added_in_place(name: str, current: Tensor, pair: Pair, *args: Any) -> Pair:
    """Do ``current += x`` (or ``-=``): the tensor is its own trace."""
    with torch.no_grad():
        change = torch.add if name == "add_" else torch.sub
        trace = Trace(change(current.detach(), pair.values))
    change_in_place = current.add_ if name == "add_" else current.sub_
    return Pair(change_in_place(pair.spike), trace)


def _is_statement() -> bool:
    """Whether a function stands for ``a += b``, which gives `a` the new value, or was called.

    A call may leave its result unused, and then `a` would be a tensor without the trace.
    """
    if torch.compiler.is_compiling():
        return True
    # Behind this function, the one that asks, and __torch_function__.
    frame: FrameType | None = sys._getframe(3)
    return frame is not None and (frame.f_code.co_code[frame.f_lasti] == dis.opmap["BINARY_OP"])


def _term(other: Any) -> Any:
    """Return what may be added to a pair: a tensor, a pair, or [spike, trace].

    Raises:
        InputError: If it is anything else.
    """
    if isinstance(other, Tensor):
        return other
    if isinstance(other, list | tuple):
        return Pair.of(other)
    raise InputError(f"{other!r} cannot be added{_inside()} to [spike, trace]: {_REMEDY}")


def _pairs_in(arg: Any) -> list[Pair]:
    """Return the pairs in nested arguments."""
    if isinstance(arg, Pair):
        return [arg]
    return [pair for item in functions.items(arg) for pair in _pairs_in(item)]


def _spikes(args: Any) -> Any:
    """Return arguments with the spike in the place of each pair."""
    return functions.replace_in(args, Pair, lambda pair: pair.spike)


def _traces(args: Any) -> Any:
    """Return arguments with the values of the trace in the place of each pair."""
    return functions.replace_in(args, Pair, lambda pair: pair.values)


def _without_gradients(args: Any) -> Any:
    """Return arguments with all tensors that belong to no pair detached."""
    return functions.replace_in(args, Tensor, lambda tensor: tensor.detach())
