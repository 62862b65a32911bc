"""Who is calling: the modules whose forward pass is going on, a checkpoint, or a recorder."""

import sys
from collections.abc import Iterator
from types import FrameType

import torch.utils.checkpoint
from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["in_checkpoint", "is_recorded", "modules_being_called"]

_CALL = nn.Module._call_impl.__code__
_CHECKPOINT = torch.utils.checkpoint.__file__


def modules_being_called() -> Iterator[nn.Module]:
    """Yield the modules whose forward pass is going on, the innermost first.

    A module does not know what it is a part of. The frames of Python do, and to look through them
    takes some microseconds, so this is for rare paths and for the words of errors.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL:
            yield frame.f_locals["self"]
        frame = frame.f_back


def in_checkpoint() -> bool:
    """Whether torch.utils.checkpoint runs or repeats what is being called."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _CHECKPOINT:
            return True
        frame = frame.f_back
    return False


def is_recorded() -> bool:
    """Whether PyTorch records what is called, for a program that runs without Python.

    It sees operators alone: what else writes into tensors would be missing in the program.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return get_proxy_mode() is not None
