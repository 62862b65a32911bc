"""How many bytes of tensors are alive at once."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["LivingBytes"]


class LivingBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations inside the block made and that still live.

    It may be entered again; what it has counted before and still lives stays counted. Memory that
    an operation uses and frees within itself is not counted.

    Attributes:
        peak: The largest sum seen since the block was last entered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __enter__(self) -> "LivingBytes":
        """Begin a block."""
        self.peak = self._count()
        super().__enter__()
        return self

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count the storages that it made."""
        out = func(*args, **(kwargs or {}))
        # A view of a tensor from outside, or an update in place of one, makes no memory.
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in given or storage._cdata in self._live:
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self._count())
        return out

    def _count(self) -> int:
        self._live = {k: v for k, v in self._live.items() if not v[0].expired()}
        return sum(size for _, size in self._live.values())


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_iter(tree) if isinstance(x, Tensor)]
