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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sj_ottt.errors import InputError, suggest

__all__ = [
    "TRACE_DTYPES",
    "BySlices",
    "LinearMap",
    "Trace",
    "View",
    "advance",
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

LinearMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Known:
    """A linear map of which something is known.

    Attributes:
        map: The map.
    """

    map: LinearMap

    def __call__(self, x: Tensor) -> Tensor:
        """Take the map."""
        return self.map(x)


class BySlices(_Known):
    """A map that gives of a tensor's slices [n:m] those of its result: pooling.

    A trace is decoded slice by slice for it.
    """


class View(_Known):
    """A map that gives the same numbers in another shape, which a stored trace has at once."""


_PART = 1 << 17
"""Numbers that a CPU decodes at once, where there are maps behind them, to stay in its cache."""


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Trace:
    """A trace on its way to a synapse: as a neuron stores it, and what it passed through since.

    Nothing is computed until a synapse's backward pass needs the values, so that the stored form
    is all that a layer keeps from forward to backward.

    Attributes:
        stored: The neuron's own trace [N, ...], in the form it keeps; or values of any floating
            dtype.
        maps: Linear maps (pooling, scale, flattening), applied in this order.
        constant: The trace of the constant 1 that a bias multiplies: 1 in a step's own gradient,
            Σ λᵏ for what integrates its steps.
        factor: What the values are multiplied by.
    """

    stored: Tensor
    maps: tuple[LinearMap, ...] = ()
    constant: float = 1.0
    factor: float = 1.0

    def through(self, linear_map: LinearMap) -> "Trace":
        """Return the trace behind one more map."""
        if isinstance(linear_map, View) and not self.maps:
            return replace(self, stored=linear_map(self.stored))
        return replace(self, maps=(*self.maps, linear_map))

    def scaled(self, factor: float) -> "Trace":
        """Return the trace times a factor."""
        return replace(self, factor=self.factor * factor)

    def decode(self, dtype: torch.dtype) -> Tensor:
        """Return the values as an ordinary tensor, shaped like the spikes beside it."""
        n, stored = 0, self.stored
        while n < len(self.maps) and isinstance(self.maps[n], BySlices):
            n += 1
        whole = not n or stored.is_cuda or torch.compiler.is_compiling()
        length = max(1, len(stored) if whole else _PART * len(stored) // max(1, stored.numel()))
        with torch.no_grad():
            values = _joined([self._mapped(part, dtype, n) for part in stored.split(length)])
            for linear_map in self.maps[n:]:
                values = linear_map(values)
        return values.to(dtype)  # a map may have gone to another dtype

    def _mapped(self, stored: Tensor, dtype: torch.dtype, n: int) -> Tensor:
        """Decode slices and take them through the first n maps."""
        values = decode(stored, dtype, self.factor)
        for linear_map in self.maps[:n]:
            values = linear_map(values)
        return values


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
            f'not λ = {decay:g}: use trace_dtype="float32"'
        )


def zeros(like: Tensor, trace_dtype: str) -> Tensor:
    """Return â[0] = 0 in a form of `TRACE_DTYPES`, shaped like a membrane, [N, ...]."""
    dtype = TRACE_DTYPES[trace_dtype]
    if trace_dtype == "float32":
        dtype = torch.promote_types(dtype, like.dtype)
    return torch.zeros_like(like, dtype=dtype)


def advance(stored: Tensor, spike: Tensor, decay: float, out: Tensor | None = None) -> Tensor:
    """Return â[t] = δ â[t−1] + s[t] in the form of â[t−1], in a new tensor or in `out`.

    Args:
        stored: â[t−1], [N, ...], in any form.
        spike: s[t], shaped like it, as booleans or numbers.
        decay: δ; 0.5 or 0 for a packed trace.
        out: Takes the result; None makes a new tensor.
    """
    if stored.dtype == torch.uint8:
        fired = spike.view(torch.uint8) if spike.dtype == torch.bool else spike.to(torch.uint8)
        if not decay:
            return torch.mul(fired, NEWEST, out=out)
        return torch.bitwise_right_shift(stored, 1, out=out).add_(fired, alpha=NEWEST)
    if stored.dtype.itemsize > 2:
        return torch.mul(stored, decay, out=out).add_(spike)
    rounded = (stored.float() * decay).add_(spike).to(stored.dtype)
    return rounded if out is None else out.copy_(rounded)


def decode(stored: Tensor, dtype: torch.dtype, factor: float = 1.0) -> Tensor:
    """Return a stored trace, in any form and times a factor, as numbers of a dtype."""
    if stored.dtype == torch.uint8:
        if stored.is_cuda:  # in one pass, which on a CPU makes a copy on the way
            return torch.mul(stored, factor / NEWEST, out=torch.empty_like(stored, dtype=dtype))
        return stored.to(dtype).mul_(factor / NEWEST)
    return stored.to(dtype) if factor == 1 else stored.to(dtype) * factor
