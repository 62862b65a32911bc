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

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from sj_ottt.errors import InputError, suggest

__all__ = [
    "NDOT_VARIANTS",
    "TRACE_DTYPES",
    "NDOTTrace",
    "Pair",
    "Trace",
    "advance",
    "advance_ndot",
    "check",
    "decode",
    "zeros",
]

TRACE_DTYPES = {
    "float32": torch.float32,
    "packed": torch.uint8,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
NEWEST = 128
"""The bit of a packed trace that says whether the neuron fired in this step."""


@dataclass(frozen=True)
class Trace:
    """A stored trace on its way to a synapse, with the linear maps it passed through.

    Nothing is computed until a synapse's backward pass needs the values, so that the stored form
    is all that a layer keeps from forward to backward.

    Attributes:
        stored: The neuron's own trace, in the form it keeps.
        maps: Linear maps (pooling, scale, flattening), applied in this order.
    """

    stored: Tensor
    maps: tuple[Callable[[Tensor], Tensor], ...] = ()

    def through(self, linear_map: Callable[[Tensor], Tensor]) -> "Trace":
        """Return the trace behind one more map."""
        return Trace(self.stored, (*self.maps, linear_map))

    def decode(self, dtype: torch.dtype) -> Tensor:
        """Return the values as an ordinary tensor, shaped like the spikes beside it."""
        with torch.no_grad():
            values = decode(self.stored, dtype)
            for linear_map in self.maps:
                values = linear_map(values)
        return values


class Pair(list):
    """What a neuron hands on in training: [spike, trace], of one shape.

    Residual connections may add pairs: the trace of a sum is the sum of the traces. Added to a
    tensor, which is a current and no spikes, it counts as its spike. Linear functions of PyTorch
    that have no weight (`torch.flatten`, `torch.cat`, average pooling …) are taken of both, as
    functions or methods; any other is refused.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Tensor | Self:
        """Apply a linear function to the spike and to the trace."""
        name = func.__name__
        if name in ("add", "add_"):  # tensor + pair: a current
            return func(*(_part(arg, 0) for arg in args), **(kwargs or {}))
        if name not in _LINEAR:
            raise InputError(
                f"{name}() was called on what a neuron hands on, [spike, trace], and the trace "
                "would not follow it: use a layer of sj_ottt.layer, or take x[0], the spike alone"
            )
        kwargs = kwargs or {}
        spike = func(*(_part(arg, 0) for arg in args), **kwargs)
        with torch.no_grad():
            trace = func(*(_part(arg, 1) for arg in args), **kwargs)
        return cls([spike, trace])

    def __getattr__(self, name: str) -> object:
        if name in ("shape", "dtype", "device", "size", "dim", "ndim"):
            return getattr(self[0], name)
        if name.startswith("__"):  # a copy or a pickle asks, and takes the list
            raise AttributeError(name)
        method = getattr(Tensor, name)
        return lambda *args, **kwargs: self.__torch_function__(method, (), (self, *args), kwargs)

    @property
    def values(self) -> Tensor:
        """The trace as an ordinary tensor."""
        spike, trace = self
        return trace.decode(spike.dtype) if isinstance(trace, Trace) else trace

    def __add__(self, other: Tensor | Self) -> Tensor | Self:
        if isinstance(other, Tensor):
            return self[0] + other
        other = Pair(other)
        with torch.no_grad():
            trace = self.values + other.values
        return Pair([self[0] + other[0], trace])

    __radd__ = __iadd__ = __add__

    def __mul__(self, factor: float) -> Self:
        if not isinstance(factor, int | float):
            return self.__torch_function__(Tensor.mul, (), (self, factor))  # refused there
        with torch.no_grad():
            trace = self.values * factor
        return Pair([self[0] * factor, trace])

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


def _part(arg: object, index: int) -> object:
    """The spikes (0) or the traces (1) of an argument that may hold pairs."""
    if isinstance(arg, Pair):
        return arg.values if index else arg[0]
    if isinstance(arg, list | tuple) and any(isinstance(item, Pair) for item in arg):
        return [_part(item, index) for item in arg]
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


def zeros(trace_dtype: str, like: Tensor) -> Tensor:
    """Return â[0] = 0 in a form, shaped like `like`."""
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


NDOT_VARIANTS = ("paper", "code")


class NDOTTrace(NamedTuple):
    """The trace of NDOT, whose decay follows the membrane, and what its next step needs.

    Both start at zero.

    Attributes:
        values: â[t].
        memory: What is left of it for step t + 1, e[t] â[t], in variant "paper"; q[t] in "code".
    """

    values: Tensor
    memory: Tensor


def advance_ndot(
    state: dict[str, Tensor | NDOTTrace | None],
    spike: Tensor,
    v_before: Tensor,
    *,
    lam: float,
    v_threshold: float,
    variant: str,
) -> None:
    """Advance NDOT's trace to step t; every ratio is clamped to [−λ, λ].

    Variant "paper": â[t] = e[t−1] â[t−1] + s[t], e[t] = v[t] / v[t−1]. A membrane of exactly 0
    counts as an infinitely small one, positive like the u it was left by.

    Variant "code", as the authors' program: â[t] = e[t] â[t−1] + s[t], e[t] = q[t] / q[t−1] with
    q = v − V_th s, so that the threshold is taken off twice; a ratio that is no number is λ.

    Args:
        state: "v": v[t], the membrane after the reset; "trace": the trace of step t − 1, which is
            replaced, part by part, so that what is replaced is free before the next is made.
        spike: s[t].
        v_before: v[t−1].
        lam: λ.
        v_threshold: V_th.
        variant: One of `NDOT_VARIANTS`.
    """
    v = state["v"]
    values, memory = state["trace"]
    state["trace"] = None
    if variant == "paper":
        values = memory + spike
        del memory
        ratio = torch.where(v_before == 0, torch.finfo(v.dtype).tiny, v_before)
        memory = torch.div(v, ratio, out=ratio).clamp_(-lam, lam).mul_(values)
    else:
        q = torch.sub(v, spike, alpha=v_threshold)
        ratio = (q / memory).nan_to_num_(nan=lam, posinf=lam, neginf=lam)
        memory = q
        values = ratio.clamp_(-lam, lam).mul_(values).add_(spike)
    state["trace"] = NDOTTrace(values, memory)
