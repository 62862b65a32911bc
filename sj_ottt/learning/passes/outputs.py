"""What a network may return at a time step: a tensor, or lists, tuples and dicts of tensors."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sj_ottt._ops.pair import Pair
from sj_ottt.errors import InputError

__all__ = ["Structure", "add", "detached", "map_tensors", "plain", "stacked", "tensors_in"]

Structure = Any
"""A tensor, or a list, tuple, named tuple or dict of structures."""


def map_tensors(f: Callable[..., Any], first: Structure, *others: Structure) -> Any:
    """Return a structure with f of each tensor in the tensor's place.

    Args:
        f: Takes a tensor of each structure.
        first: The structure; the spikes stand for what a neuron hands on, and None stays None.
        *others: Structures of the same form.

    Raises:
        InputError: If it holds anything else, or the others have another form.
    """
    if isinstance(first, Pair):
        first = first.spike
    others = tuple(other.spike if isinstance(other, Pair) else other for other in others)
    if isinstance(first, Tensor) and all(isinstance(other, Tensor) for other in others):
        return f(first, *others)
    if first is None and all(other is None for other in others):
        return None
    if isinstance(first, Mapping) and all(_has_keys(other, first) for other in others):
        items = {k: map_tensors(f, v, *(other[k] for other in others)) for k, v in first.items()}
        return items if type(first) is dict else type(first)(items)  # type: ignore[call-arg]
    if isinstance(first, list | tuple) and all(_has_length(other, first) for other in others):
        values = [map_tensors(f, *parts) for parts in zip(first, *others, strict=True)]
        # A named tuple takes its fields one by one.
        return type(first)(*values) if hasattr(first, "_fields") else type(first)(values)
    kinds = " and ".join(sorted({type(part).__name__ for part in (first, *others)}))
    raise InputError(
        f"the outputs or targets hold {kinds}: give tensors, or lists, tuples and dicts of them, "
        "of the same form at every time step"
    )


def _has_keys(other: object, first: Mapping[Any, Any]) -> bool:
    return isinstance(other, Mapping) and other.keys() == first.keys()


def _has_length(other: object, first: list[Any] | tuple[Any, ...]) -> bool:
    return isinstance(other, list | tuple) and len(other) == len(first)


def plain(structure: Structure) -> Structure:
    """Return a structure with the spikes in the place of what a neuron hands on."""
    return structure if isinstance(structure, Tensor) else map_tensors(lambda x: x, structure)


def detached(structure: Structure) -> Structure:
    """Return a structure cut from its graph."""
    return map_tensors(Tensor.detach, structure)


def add(a: Structure, b: Structure) -> Structure:
    """Return the sum of two structures, tensor by tensor."""
    return map_tensors(torch.add, a, b)


def stacked(structures: Iterable[Structure], dim: int) -> Structure:
    """Return one structure of several, their tensors stacked along a new dimension."""
    return map_tensors(lambda *tensors: torch.stack(tensors, dim), *structures)


def tensors_in(structure: Structure) -> Iterator[Tensor]:
    """Yield the tensors of a structure."""
    found: list[Tensor] = []
    map_tensors(found.append, structure)
    yield from found
