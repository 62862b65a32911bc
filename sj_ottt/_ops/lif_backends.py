"""Where the kernels of `lif_fused` can run: which backends there are, and what they take."""

import torch
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor

from sj_ottt._ops import cpp, lif_gpu
from sj_ottt._ops.lif_launch import SCALARS, host_types
from sj_ottt._ops.trace import TRACE_DTYPES
from sj_ottt.errors import InputError

__all__ = ["BACKENDS", "SURROGATES", "check_available", "check_usable", "usable"]

SURROGATES = {
    sj_surrogate.Sigmoid: 0,
    sj_surrogate.ATan: 1,
    sj_surrogate.PiecewiseQuadratic: 2,
    sj_surrogate.Rect: 3,
}


BACKENDS = {"cuda": "on a GPU", "cupy": "on a GPU", "cpp": "on the CPU"}
"""Of each backend with kernels, where inputs have to be.

"cupy" is what SpikingJelly calls kernels on a GPU, and asks for CuPy.
"""


def check_available(backend: str) -> None:
    """Refuse a backend that cannot run.

    Raises:
        InputError: For "cuda", without a GPU or without a package that compiles for it; for "cupy",
            also without CuPy; for "cpp", without a C++ compiler or on another system than Linux.
    """
    if backend not in BACKENDS:
        return
    missing = cpp.missing() if backend == "cpp" else lif_gpu.missing(backend == "cupy")
    if missing is not None:
        raise InputError(
            f'backend="{backend}" cannot run here, because {missing}; backend="auto" takes the '
            'kernels where they are, and backend="torch" never needs them'
        )


def usable(
    x: Tensor, surrogate_function: sj_surrogate.SurrogateFunctionBase, trace_dtype: str
) -> bool:
    """Whether the kernels can run here: on a tensor's device and dtype, with surrogate and trace.

    On a CPU they leave a compiled network to PyTorch's compiler, and float16 to PyTorch.
    """
    if not _supports(surrogate_function) or x.dtype not in SCALARS:
        return False
    if x.is_cuda:
        return bool(lif_gpu.available(x.device.index))
    stored = TRACE_DTYPES[trace_dtype]
    if stored == torch.float32:
        stored = torch.promote_types(x.dtype, stored)
    if torch.float16 in (x.dtype, stored) or not cpp.has_numbers(x):
        return False
    return cpp.available("lif.cu", *host_types(x.dtype, stored))


def _supports(surrogate_function: sj_surrogate.SurrogateFunctionBase) -> bool:
    """Whether the kernels have the derivative of a surrogate."""
    return type(surrogate_function) in SURROGATES and bool(surrogate_function.spiking)


def check_usable(
    x: Tensor, surrogate_function: sj_surrogate.SurrogateFunctionBase, backend: str
) -> None:
    """Refuse an input or a surrogate that the kernels of a backend do not know.

    Raises:
        InputError: Naming what does not fit.
    """
    if not _supports(surrogate_function):
        names = ", ".join(cls.__name__ for cls in SURROGATES)
        raise InputError(
            f'backend="{backend}" does not know the surrogate {surrogate_function}: it has '
            f'{names}; use one of them or backend="torch"'
        )
    if x.dtype not in SCALARS:
        raise InputError(
            f'backend="{backend}" cannot compute in {x.dtype}: use a floating-point dtype'
        )
    if not _is_placed(x, backend):
        raise InputError(
            f'backend="{backend}" needs inputs {BACKENDS[backend]}, and this one is on '
            f'"{x.device}": move model and input there, or use backend="auto"'
        )
    if backend == "cupy" and x.is_cuda:
        lif_gpu.check_cupy(x.device.index)


def _is_placed(x: Tensor, backend: str) -> bool:
    return x.is_cpu if backend == "cpp" else x.is_cuda
