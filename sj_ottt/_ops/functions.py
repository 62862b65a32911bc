"""What PyTorch's functions are to spikes and their trace: linear maps, products, or neither."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sj_ottt._ops.synapse import Product

__all__ = [
    "CONSTANTS",
    "FACTS",
    "LINEAR",
    "LINEAR_PROPERTIES",
    "MAX_POOLS",
    "PRODUCTS",
    "READS",
    "SYNAPSES",
    "drops",
    "is_made_of_spikes",
    "is_weight",
    "items",
    "not_linear",
    "replace_in",
    "synapse_call",
    "tensors_in",
]

FACTS = {
    *("device", "dim", "dtype", "element_size", "get_device", "is_contiguous", "is_cpu"),
    *("is_complex", "is_cuda", "is_floating_point", "is_sparse", "itemsize", "layout", "ndim"),
    *("ndimension", "nelement", "numel", "requires_grad", "shape", "size", "stride"),
}
"""What a pair answers as its spike does."""

CONSTANTS = {
    *("empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"),
    *("ones_like", "rand_like", "randn_like", "zeros_like"),
}
"""New tensors that take nothing but the shape, the dtype and the device."""

READS = {"backward", "item", "register_hook", "retain_grad", "tolist"}
"""What asks for the spikes' numbers or for their gradient, and hands nothing on."""

LINEAR = {
    # sums and factors
    *("add", "cumsum", "diff", "mean", "neg", "negative", "positive", "rsub", "sub", "subtract"),
    *("sum", "trace"),
    # another place, device or dtype
    *("bfloat16", "clone", "contiguous", "cpu", "cuda", "detach", "double", "float", "half"),
    *("to", "type_as"),
    # another shape
    *("broadcast_to", "expand", "expand_as", "flatten", "movedim", "moveaxis", "permute"),
    *("ravel", "repeat", "repeat_interleave", "reshape", "reshape_as", "squeeze", "swapaxes"),
    *("swapdims", "t", "tile", "transpose", "unflatten", "unsqueeze", "view", "view_as"),
    # some of the elements, or the same in another order
    *("__getitem__", "channel_shuffle", "chunk", "diag", "diagonal", "dsplit", "flip", "fliplr"),
    *("flipud", "gather", "hsplit", "index_select", "masked_fill", "masked_select", "narrow"),
    *("pixel_shuffle", "pixel_unshuffle", "roll", "rot90", "select", "split"),
    *("split_with_sizes", "take", "take_along_dim", "tensor_split", "tril", "triu", "unbind"),
    *("vsplit", "where"),
    # several joined
    *("cat", "column_stack", "concat", "concatenate", "dstack", "hstack", "row_stack", "stack"),
    "vstack",
    # neighbours
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d"),
    *("avg_pool2d", "avg_pool3d", "constant_pad_nd", "fold", "interpolate", "pad"),
    *("unfold", "upsample", "upsample_bilinear", "upsample_nearest"),
}
"""Maps that are linear in all tensors they are given but constants such as an index or a mask."""

LINEAR_PROPERTIES = {"T", "mT"}

MAX_POOLS = {
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("max_pool1d", "max_pool2d", "max_pool3d"),
}

PRODUCTS = {"bmm", "div", "divide", "einsum", "inner", "matmul", "mm", "mul", "multiply", "mv"}
PRODUCTS |= {"__rmatmul__", "tensordot", "true_divide"}
"""Linear in each of two factors; a quotient is linear in what is divided."""

_CONVOLUTIONS = {f"conv{n}d": n for n in (1, 2, 3)}
_TRANSPOSED = {f"conv_transpose{n}d": n for n in (1, 2, 3)}
SYNAPSES = {"linear", *_CONVOLUTIONS, *_TRANSPOSED}

_NOTHING = (None, 0)
_CONSTANT_ARGUMENTS = {  # of functions that are affine, or no function of floats, with another one
    "pad": (3, "value", _NOTHING),
    "constant_pad_nd": (2, "value", _NOTHING),
    "masked_fill": (2, "value", _NOTHING),
}
_QUOTIENTS = {"div", "divide", "true_divide"}
_SUMS = {"add", "sub", "subtract", "rsub"}


def not_linear(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return why a function of `LINEAR` is not linear with these arguments; None where it is."""
    if "out" in kwargs:
        return "writes into another tensor"
    values = [*args, *kwargs.values()]
    if name == "view" and any(isinstance(value, torch.dtype) for value in values):
        return "reads the bits as other numbers"
    if kwargs.get("rounding_mode") is not None:
        return "rounds"
    if name in _SUMS:
        terms = [*args[:2], *(kwargs[key] for key in ("input", "other") if key in kwargs)]
        if any(not isinstance(term, Tensor | list) for term in terms):
            return "adds a number, which is neither a current nor spikes"
    if name in MAX_POOLS and _gives_indices(name, args, kwargs):
        return "gives indices too"
    if name == "__rdiv__" or (name in _QUOTIENTS and not isinstance(values[0], list)):
        return "divides by it"
    if name == "where" and any(isinstance(value, int | float) and value for value in values):
        return "puts a number in the place of spikes"
    if name in _CONSTANT_ARGUMENTS:
        position, key, harmless = _CONSTANT_ARGUMENTS[name]
        value = args[position] if len(args) > position else kwargs.get(key)
        if isinstance(value, Tensor) or value not in harmless:
            return "puts a number in the place of spikes"
    return None


def _gives_indices(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a maximum pooling is asked for the places of the maxima."""
    position = 2 if name.startswith("adaptive") else 6
    return bool(kwargs.get("return_indices") or True in args[position : position + 1])


def drops(input: Any, p: float = 0.5, training: bool = True, *args: Any, **kwargs: Any) -> bool:
    """Whether a call of a dropout drops anything."""
    return training and p > 0


def is_weight(factor: Tensor) -> bool:
    """Whether a factor that learns is a parameter, or made of one alone, such as ``w.t()``.

    What the network computes from its input is none: the gradient of such a factor would need more
    than a trace.
    """
    node = factor.grad_fn
    while node is not None and type(node).__name__ != "AccumulateGrad":
        kind = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        factors = [getattr(node, name, None) for name in ("_saved_self", "_saved_other")]
        of_two = kind in ("Mul", "Div") and any(f is not None and f.dim() > 0 for f in factors)
        if kind not in _OF_ONE_TENSOR or of_two:
            return False
        node = node.next_functions[0][0] or node.next_functions[-1][0]
    return True


_OF_ONE_TENSOR = {
    *("Abs", "Clamp", "Clone", "Div", "Exp", "Expand", "Mul", "Neg", "Permute", "Relu", "Select"),
    *("Sigmoid", "Slice", "Softmax", "Softplus", "Squeeze", "T", "Tanh", "ToCopy", "Transpose"),
    *("UnsafeView", "Unsqueeze", "View"),
}
"""Names of autograd's functions of one tensor (and of a number)."""


_OF_SPIKES = {
    *("_FromStateBackward", "_ScanBackward", "_TracedProductBackward", "_FusedLIFBackward"),
    "GeneratedBackwardFor_sj_ottt_lif_scan_defaultBackward",  # the kernel as an operator
}
"""Names of autograd's functions of neurons and synapses."""


def is_made_of_spikes(weight: Tensor) -> bool:
    """Whether the weight of a synapse comes out of neurons or synapses itself."""
    seen, nodes = set(), [weight.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ in _OF_SPIKES:
            return True
        seen.add(node)
        nodes += [function for function, _ in node.next_functions]
    return False


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    return input, weight, bias, Product(), None


def _conv(
    n: int,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    stride, dilation = _each(stride, n), _each(dilation, n)
    pad = None
    if isinstance(padding, str):
        sizes = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        sizes = sizes if padding == "same" else [0] * n
        around = [(size // 2, size - size // 2) for size in sizes]
        padding = tuple(before for before, _ in around)
        if any(before != after for before, after in around):
            pad, padding = [side for pair in reversed(around) for side in pair], (0,) * n
    return input, weight, bias, Product(stride, _each(padding, n), dilation, groups), pad


def _conv_transposed(
    n: int,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    stride, padding, dilation = _each(stride, n), _each(padding, n), _each(dilation, n)
    product = Product(stride, padding, dilation, groups, _each(output_padding, n))
    return input, weight, bias, product, None


def _each(value: Any, n: int) -> tuple[int, ...]:
    """Return one int per dimension."""
    values = (value,) * n if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


def synapse_call(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, Any, Any, Product, Callable[[Tensor], Tensor] | None]:
    """Read a call of one of `SYNAPSES`.

    Returns:
        Its input, weight, bias, the product, and how the input is to be padded before, or None.
    """
    if name in _CONVOLUTIONS:
        x, weight, bias, product, pad = _conv(_CONVOLUTIONS[name], *args, **kwargs)
    elif name in _TRANSPOSED:
        x, weight, bias, product, pad = _conv_transposed(_TRANSPOSED[name], *args, **kwargs)
    else:
        x, weight, bias, product, pad = _linear(*args, **kwargs)
    before = None if pad is None else partial(F.pad, pad=pad)
    return x, weight, bias, product, before


def tensors_in(arg: Any) -> list[Tensor]:
    """Return the tensors in nested arguments, but for those of pairs."""
    if isinstance(arg, Tensor):
        return [arg]
    return [tensor for item in items(arg) for tensor in tensors_in(item)]


def items(arg: Any) -> Iterable[Any]:
    """Return what is nested in an argument."""
    if type(arg) is dict:
        return arg.values()
    return arg if type(arg) in (list, tuple) else ()


def replace_in(arg: Any, kind: type, new: Callable[[Any], Tensor]) -> Any:
    """Return nested arguments with something else in the place of each pair, or tensor."""
    if isinstance(arg, kind):
        return new(arg)
    if type(arg) in (list, tuple):  # not a torch.Size
        return type(arg)(replace_in(item, kind, new) for item in arg)
    if type(arg) is dict:
        return {key: replace_in(item, kind, new) for key, item in arg.items()}
    return arg
