"""The presynaptic trace â[t] = δ â[t−1] + s[t] and the forms in which a neuron may store it.

δ is λ = 1 − 1/τ for OTTT and 0 for SLTT, whose trace is the spike itself.

| form | bytes per neuron | error of â against exact arithmetic |
| --- | --- | --- |
| `float32` | 4 | rounding of the input's dtype, at least float32; any δ, any T |
| `packed` | 1 | δ = 0.5: none up to T = 8, below 2⁻⁷ (older spikes) beyond; δ = 0: none |
| `float16` | 2 | at most 2⁻¹¹ / (1 − δ)² |
| `bfloat16` | 2 | at most 2⁻⁸ / (1 − δ)² |

`packed` holds the last eight spikes as the bits of one byte, the newest in the top bit: the byte,
divided by 128, is the trace.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sj_ottt.errors import InputError, suggest

__all__ = ["TRACE_DTYPES", "LinearMap", "Pair", "Trace", "advance", "check", "decode", "zeros"]

TRACE_DTYPES = {
    "float32": torch.float32,
    "packed": torch.uint8,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
NEWEST = 128
"""The bit of a packed trace that says whether the neuron fired in this step."""


LinearMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Trace:
    """A trace on its way to a synapse: as a neuron stores it, and what it passed through since.

    Nothing is computed until a synapse's backward pass needs the values, so that the stored form
    is all that a layer keeps from forward to backward.

    Attributes:
        stored: The neuron's own trace, in the form it keeps; or values, of any floating dtype.
        maps: Linear maps (pooling, scale, flattening), applied in this order.
    """

    stored: Tensor
    maps: tuple[LinearMap, ...] = ()

    def through(self, linear_map: LinearMap) -> "Trace":
        """Return the trace behind one more map."""
        return Trace(self.stored, (*self.maps, linear_map))

    def decode(self, dtype: torch.dtype) -> Tensor:
        """Return the values as an ordinary tensor, shaped like the spikes beside it."""
        with torch.no_grad():
            values = decode(self.stored, dtype)
            for linear_map in self.maps:
                values = linear_map(values)
        return values


class Pair(list[Tensor]):
    """What a neuron hands on in training: a spike s[t] and its trace â[t], of one shape.

    To Python it is the list [spike, trace] of two tensors, which is what SpikingJelly's containers
    look for. The trace is made a tensor only when it is asked for as an item.

    Residual connections may add pairs: the trace of a sum is the sum of the traces. Added to a
    tensor, which is a current and no spikes, it counts as its spike. Linear functions of PyTorch
    that have no weight (`torch.flatten`, `torch.cat`, average pooling …) are taken of both, as
    functions or methods; any other is refused.

    Args:
        spike: s[t], [N, ...], which carries the gradient.
        trace: â[t], which carries none.
    """

    def __init__(self, spike: Tensor, trace: Trace):
        super().__init__()  # the list itself stays empty: a trace need not be a tensor yet
        self.spike = spike
        self.trace = trace

    @classmethod
    def of(cls, items: Sequence[Tensor]) -> Self:
        """Return a pair as it is, and [spike, trace] of SpikingJelly's neurons as a pair."""
        if isinstance(items, cls):
            return items
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
        if name in ("add", "add_"):  # tensor + pair: a current
            return func(*_spikes(args), **kwargs)
        if name not in _LINEAR:
            raise InputError(
                f"{name}() was called on what a neuron hands on, [spike, trace], and the trace "
                "would not follow it: use a layer of sj_ottt.layer, or take x[0], the spike alone"
            )
        spike = func(*_spikes(args), **kwargs)
        with torch.no_grad():
            return cls(spike, Trace(func(*_traces(args), **kwargs)))

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "dtype", "device", "size", "dim", "ndim"):
            return getattr(self.spike, name)
        if name.startswith("__") or name in ("spike", "trace"):  # a copy asks before they are set
            raise AttributeError(name)
        method = getattr(Tensor, name)
        return lambda *args, **kwargs: self.__torch_function__(method, (), (self, *args), kwargs)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Tensor):
            return self.spike + other
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


_LINEAR = {
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
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
    return arg


def check(trace_dtype: str, decay: float) -> None:
    """Refuse an unknown form, and `packed` for a trace that is no binary fraction.

    Raises:
        InputError: In either case.
    """
    if trace_dtype not in TRACE_DTYPES:
        raise InputError(
            f'trace_dtype="{trace_dtype}" is unknown: use one of {", ".join(TRACE_DTYPES)}'
            f"{suggest(trace_dtype, TRACE_DTYPES)}"
        )
    if trace_dtype == "packed" and decay not in (0.0, 0.5):
        raise InputError(
            'trace_dtype="packed" stores spikes as binary digits, which needs tau=2 (λ = 0.5), '
            f'not tau={1 / (1 - decay):g}: use trace_dtype="float32"'
        )


def zeros(like: Tensor, trace_dtype: str) -> Tensor:
    """Return â[0] = 0 in a form, shaped like a membrane."""
    dtype = TRACE_DTYPES[trace_dtype]
    if trace_dtype == "float32":
        dtype = torch.promote_types(dtype, like.dtype)
    return torch.zeros_like(like, dtype=dtype)


def advance(stored: Tensor, spike: Tensor, decay: float) -> Tensor:
    """Return â[t] = δ â[t−1] + s[t] in the form of â[t−1].

    Args:
        stored: â[t−1].
        spike: s[t], as booleans or numbers.
        decay: δ; a packed trace knows 0.5 and 0.
    """
    if stored.dtype == torch.uint8:
        fired = spike if spike.dtype == torch.bool else spike > 0
        before = stored >> 1 if decay else torch.zeros_like(stored)
        return before.add_(fired.view(torch.uint8), alpha=NEWEST)
    exact = stored.float() if stored.dtype.itemsize == 2 else stored
    return (exact * decay).add_(spike).to(stored.dtype)


def decode(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a stored trace as numbers."""
    if stored.dtype == torch.uint8:
        return stored.to(dtype).mul_(1 / NEWEST)
    return stored.to(dtype)
