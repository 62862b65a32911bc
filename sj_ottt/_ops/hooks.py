"""Backward hooks of modules whose input or output is a pair [spike, trace]."""

from collections import OrderedDict
from typing import Any

from torch.utils.hooks import BackwardHook

from sj_ottt._ops.pair import Pair

__all__ = ["PairHooks"]


class PairHooks:
    """First base of modules that take or hand on pairs: their backward hooks see the spikes.

    PyTorch's full backward hooks look for tensors and would pass over a pair without a word. Here
    they run once for each call, with the gradients of the spikes.
    """

    _backward_hooks: dict[int, Any]
    _backward_pre_hooks: dict[int, Any]
    _is_full_backward_hook: bool | None

    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        hooks = self._backward_hooks, self._backward_pre_hooks
        if not any(hooks) or self._is_full_backward_hook is False:
            return super()._call_impl(*args, **kwargs)  # type: ignore[misc]
        around = BackwardHook(self, *(list(table.values()) for table in hooks))
        spikes = around.setup_input_hook(tuple(_spike(arg) for arg in args))
        args = tuple(_with_spike(arg, spike) for arg, spike in zip(args, spikes, strict=True))
        self._backward_hooks, self._backward_pre_hooks = OrderedDict(), OrderedDict()
        try:
            out = super()._call_impl(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._backward_hooks, self._backward_pre_hooks = hooks
        return _with_spike(out, around.setup_output_hook(_spike(out)))


def _spike(value: Any) -> Any:
    return value.spike if isinstance(value, Pair) else value


def _with_spike(value: Any, spike: Any) -> Any:
    """Return a pair with another tensor as its spike, and anything else replaced by it."""
    return Pair(spike, value.trace, value.spike_suffices) if isinstance(value, Pair) else spike
