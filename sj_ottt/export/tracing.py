"""A network of one time step, seen as operations: synapses, pools, neurons, and what joins them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from sj_ottt._ops.functions import drops
from sj_ottt.errors import InputError
from sj_ottt.layer import Feedback
from sj_ottt.layer.synapse import Synapse
from sj_ottt.learning import reset_state
from sj_ottt.learning.passes.neurons import check_one_step
from sj_ottt.neuron import OTTTLIFNode, OTTTParametricLIFNode
from sj_ottt.neuron.readout import LeakyIntegrator

__all__ = ["Op", "trace_operations"]


@dataclass(eq=False)
class Op:
    """An operation of a network.

    Attributes:
        name: Of the module that does it.
        kind: "input"; "conv" or "linear", a synapse; "channels", a factor and a shift of each
            channel; "pool", sums over windows; "flatten"; "sum"; "lif", a spiking neuron; "li", a
            membrane without spikes.
        inputs: The operations whose results it takes, each times a factor, all added up.
        shape: Of its result, without the batch.
        weight: Of a synapse; of "channels" the factors [C].
        bias: The same for what is added; None for nothing.
        options: Of a convolution or a pool, as its module names them.
        module: The neuron.
    """

    name: str
    kind: str
    inputs: dict["Op", float]
    shape: tuple[int, ...]
    weight: Tensor = field(default_factory=lambda: torch.empty(0))
    bias: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)
    module: Any = None


@dataclass(frozen=True)
class _Unknown:
    """What comes of results of the network through a function that is no operation."""

    what: str


_Value = dict[Op, float] | _Unknown
"""A tensor as a sum of results, each times a factor."""

_SAME = ("clone", "contiguous", "detach", "requires_grad_", "to", "float")
_FLATTENS = ("flatten", "reshape", "view", "squeeze")
_SUMS = {"add": 1.0, "add_": 1.0, "__iadd__": 1.0, "sub": -1.0, "sub_": -1.0, "__isub__": -1.0}
_FACTORS = ("mul", "mul_", "__imul__", "div", "div_", "true_divide", "__itruediv__")


def trace_operations(model: nn.Module, example: Tensor) -> tuple[list[Op], Op]:
    """Run one time step, and return its operations, in their order, and the one of its output.

    What Python does between the layers is followed where it adds results up, multiplies them by
    numbers or flattens them.

    Args:
        model: In step mode "s", with neurons of `sj_ottt.neuron`; its state is reset.
        example: Input of one time step, [N, ...].

    Raises:
        InputError: If something is done that is no such operation; it is named.
    """
    check_one_step(model)
    modes = [(module, module.training) for module in model.modules()]
    tracer = _Tracer(model, example)
    reset_state(model)
    try:
        model.eval()
        with torch.no_grad(), tracer:
            output = model(example)
    finally:
        tracer.remove_hooks()
        for module, training in modes:
            module.training = training
        reset_state(model)
    if not isinstance(output, Tensor):
        raise InputError(
            f"{type(model).__name__} gives a {type(output).__name__}, not one tensor: wrap it in a "
            "module that gives one of its outputs"
        )
    return tracer.ops, tracer.joined(output, "output", "the output")


class _Tracer(TorchFunctionMode):
    """Notes what the modules and functions of a network do to the results of one another."""

    def __init__(self, model: nn.Module, example: Tensor):
        super().__init__()
        self.ops = [Op("input", "input", {}, tuple(example.shape[1:]))]
        self._values: dict[int, _Value] = {id(example): {self.ops[0]: 1.0}}
        self._alive: list[Tensor] = [example]  # so that no other tensor gets the id of one
        self._inside = 0
        self._running: list[str] = []
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            self._watch(name or type(module).__name__, module)

    def _watch(self, name: str, module: nn.Module) -> None:
        note = _note_of(module, name)
        if note is None:
            self._handles += (
                module.register_forward_pre_hook(lambda *_: self._running.append(name)),
                module.register_forward_hook(lambda *_: self._left(1)),
            )
            return
        noted = note

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._inside += 1

        def leave(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            self._inside -= 1
            self._keep(out, noted(self, name, module, args[0], out))

        self._handles += (
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave),
        )

    def _left(self, count: int) -> None:
        del self._running[-count:]

    def remove_hooks(self) -> None:
        """Leave the network as it was."""
        for handle in self._handles:
            handle.remove()

    def _keep(self, tensor: Tensor, value: _Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)

    def value(self, tensor: Any) -> _Value | None:
        """Return what a tensor is made of; None where it is not of the network's results."""
        return self._values.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def terms(self, tensor: Any, where: str) -> dict[Op, float]:
        """Return the results that a tensor is the sum of.

        Raises:
            InputError: It is not such a sum.
        """
        value = self.value(tensor)
        if isinstance(value, dict):
            return dict(value)
        what = value.what if value is not None else "what is not made of the network's input"
        raise InputError(
            f"{where} takes {what}: only sums, constant factors, flattening, synapses, average "
            'pools and LIF neurons can be written as a graph; export to "onnx" or "torch" instead'
        )

    def add(self, op: Op) -> dict[Op, float]:
        """Note an operation; return its result.

        Raises:
            InputError: If a neuron runs twice in a time step.
        """
        times = sum(other.name.partition("#")[0] == op.name for other in self.ops)
        if times and op.module is not None:
            raise InputError(
                f"{op.name} runs twice in a time step with one state, and a neuron of a graph once:"
                " build two neurons"
            )
        op.name = f"{op.name}#{times}" if times else op.name
        self.ops.append(op)
        return {op: 1.0}

    def joined(self, tensor: Tensor, name: str, where: str) -> Op:
        """Return the one operation whose result a tensor is."""
        terms = self.terms(tensor, where)
        (op, factor), *others = terms.items()
        if not others and factor == 1.0:
            return op
        return next(iter(self.add(Op(name, "sum", terms, tuple(tensor.shape[1:])))))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one of PyTorch's functions, and note what it does."""
        kwargs = kwargs or {}
        if not self._inside:
            self._check_writing(func.__name__, args)
        out = func(*args, **kwargs)
        if not self._inside and isinstance(out, Tensor):
            values = [self.value(a) for a in (*args, *kwargs.values())]
            if any(v is not None for v in values):
                self._keep(out, self._after(func.__name__, args, kwargs, out))
        return out

    def _after(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> _Value:
        """Return what a function makes of the results that it takes."""
        first = self.value(args[0]) if args else None
        unknown = _Unknown(f"{name} of results{self._where()}")
        kept = "dropout" in name and not drops(*args, **kwargs)
        if (name in _SAME or kept) and isinstance(first, dict):
            return first
        if name in _SUMS and len(args) == 2 and kwargs.keys() <= {"alpha"}:
            return self._sum(args, _SUMS[name] * float(kwargs.get("alpha", 1.0)), out, unknown)
        if name == "neg" and isinstance(first, dict):
            return {op: -factor for op, factor in first.items()}
        if name in _FACTORS and len(args) == 2 and not kwargs:
            return self._product(args, "div" in name, out, unknown)
        if name in _FLATTENS and isinstance(first, dict) and out.shape[:1] == args[0].shape[:1]:
            if out.shape == args[0].shape:
                return first
            if out.dim() == 2:
                name = self._unique("flatten")
                return self.add(Op(name, "flatten", dict(first), tuple(out.shape[1:])))
        return unknown

    def _check_writing(self, name: str, args: tuple[Any, ...]) -> None:
        """Refuse a function that writes into a part of a result, which would go unseen."""
        writes = name == "__setitem__" or name.startswith("__i")
        writes |= name.endswith("_") and not name.endswith("__")
        known = name in _SAME or name in _SUMS or name in _FACTORS
        value = self.value(args[0]) if args else None
        if writes and value is not None and not (known and isinstance(value, dict)):
            raise InputError(f"{name} writes into results{self._where()}: return a new tensor")

    def _where(self) -> str:
        return f" in {self._running[-1]}" if self._running else ""

    def _sum(self, args: tuple[Any, ...], sign: float, out: Tensor, unknown: _Unknown) -> _Value:
        values = [self.value(a) for a in args]
        same = all(isinstance(a, Tensor) and a.shape == out.shape for a in args)
        if not same or not all(isinstance(v, dict) for v in values):
            return unknown
        terms = self.terms(args[0], "")
        for op, factor in self.terms(args[1], "").items():
            terms[op] = terms.get(op, 0.0) + sign * factor
        return self.add(Op(self._unique("sum"), "sum", terms, tuple(out.shape[1:])))

    def _product(
        self, args: tuple[Any, ...], divides: bool, out: Tensor, unknown: _Unknown
    ) -> _Value:
        known, other = (args if self.value(args[0]) is not None else args[::-1])[:2]
        value = self.value(known)
        is_number = isinstance(other, int | float) or (
            isinstance(other, Tensor) and other.numel() == 1 and self.value(other) is None
        )
        if not is_number or not isinstance(value, dict) or out.shape != known.shape:
            return unknown
        if divides and known is not args[0]:
            return unknown
        number = float(other)
        return {op: factor / number if divides else factor * number for op, factor in value.items()}

    def _unique(self, kind: str) -> str:
        prefix = f"{self._running[-1]}." if self._running else ""
        return f"{prefix}{kind}_{sum(op.kind == kind for op in self.ops)}"


_Note = Callable[[_Tracer, str, Any, Any, Tensor], _Value]


def _note_of(module: nn.Module, name: str) -> _Note | None:
    """Return what notes a call of a module; None for one that is seen through its parts.

    Raises:
        InputError: There is no operation for the module.
    """
    if isinstance(module, Feedback):
        raise InputError(
            f"{name} is a Feedback, one time step late, and an edge of a NIR graph carries no "
            'delay of a step: export to "onnx" or "torch" instead'
        )
    for kinds, note in _NOTES:
        if isinstance(module, kinds):
            return note
    if isinstance(module, base.MemoryModule):
        raise InputError(
            f"{name} is a {type(module).__name__}, whose dynamics NIR has no node for: use "
            "OTTTLIFNode (SpikingJelly's neurons become it by sj_ottt.convert), or export to "
            '"onnx" or "torch"'
        )
    if isinstance(module, _ConvNd | _BatchNorm):
        raise InputError(
            f"{name} is a {type(module).__name__}, for which there is no node: use Conv2d, Linear, "
            'BatchNorm2d or BatchNorm1d, or export to "onnx" or "torch"'
        )
    return None


def _same(tracer: _Tracer, name: str, module: Any, x: Any, out: Tensor) -> _Value:
    return tracer.terms(x, name)


def _neuron(tracer: _Tracer, name: str, module: Any, x: Any, out: Tensor) -> _Value:
    if type(module)._step not in (OTTTLIFNode._step, OTTTParametricLIFNode._step):
        raise _other_than(name, module, "a LIF neuron's step")
    return tracer.add(Op(name, "lif", tracer.terms(x, name), tuple(out.shape[1:]), module=module))


def _integrator(tracer: _Tracer, name: str, module: Any, x: Any, out: Tensor) -> _Value:
    # What it integrates is the result of the synapse that ran inside it.
    synapse = tracer.ops[-1]
    if synapse.kind not in ("conv", "linear") or synapse.inputs != tracer.terms(x, name):
        raise _other_than(name, module, "the integral of one linear layer or convolution")
    terms = {synapse: 1.0}
    return tracer.add(Op(name, "li", terms, tuple(out.shape[1:]), module=module))


def _synapse(tracer: _Tracer, name: str, module: Any, x: Any, out: Tensor) -> _Value:
    weight = module.make_weight() if isinstance(module, Synapse) else module.weight
    options = {}
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            raise InputError(
                f'{name} pads with padding_mode="{module.padding_mode}", and a convolution of a '
                "NIR graph pads with zeros: train it with zeros"
            )
        options = {key: getattr(module, key) for key in ("stride", "padding", "dilation")}
        weight = _without_groups(weight, module.groups)
    elif out.dim() != 2:
        raise InputError(f"{name} maps {list(x.shape)}, and a linear layer of a NIR graph [N, F]")
    kind = "conv" if isinstance(module, nn.Conv2d) else "linear"
    bias = None if module.bias is None else module.bias.detach().clone()
    product = F.conv2d if kind == "conv" else F.linear
    if not _close(product(x, weight, bias, **options), out):
        raise _other_than(name, module, "the product with its weight, and its bias")
    return tracer.add(
        Op(
            name, kind, tracer.terms(x, name), tuple(out.shape[1:]), weight.detach().clone(), bias,
            options,
        )
    )  # fmt: skip


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def _other_than(name: str, module: nn.Module, what: str) -> InputError:
    return InputError(
        f"{name} is a {type(module).__name__}, which does something else than {what}: put what it "
        'does more into modules of its own, or export to "onnx" or "torch"'
    )


def _without_groups(weight: Tensor, groups: int) -> Tensor:
    """Return the weight of the same convolution without groups, whose other weights are zero."""
    per_group = weight.shape[1]
    rows = weight.shape[0] // groups
    whole = weight.new_zeros(weight.shape[0], per_group * groups, *weight.shape[2:])
    for g in range(groups):
        chosen = slice(g * rows, (g + 1) * rows)
        whole[chosen, g * per_group : (g + 1) * per_group] = weight[chosen]
    return whole


def _batch_norm(tracer: _Tracer, name: str, module: Any, x: Any, out: Tensor) -> _Value:
    if module.running_mean is None:
        raise InputError(f"{name} normalises by each batch: train it with track_running_stats=True")
    scale = torch.rsqrt(module.running_var + module.eps)
    scale = scale if module.weight is None else scale * module.weight
    shift = -module.running_mean * scale
    shift = shift if module.bias is None else shift + module.bias
    shape = (1, -1, *[1] * (x.dim() - 2))
    if not _close(x * scale.view(shape) + shift.view(shape), out):
        raise _other_than(name, module, "a factor and a shift of each channel")
    return tracer.add(
        Op(
            name, "channels", tracer.terms(x, name), tuple(out.shape[1:]), scale.detach(),
            shift.detach(),
        )
    )  # fmt: skip


def _pool(tracer: _Tracer, name: str, module: Any, x: Any, out: Tensor) -> _Value:
    if isinstance(module, nn.AdaptiveAvgPool2d):
        sizes = tuple(zip(x.shape[-2:], out.shape[-2:], strict=True))
        if any(size % made for size, made in sizes):
            raise InputError(
                f"{name} pools {list(x.shape[-2:])} to {list(out.shape[-2:])} by windows of "
                "different sizes: give an input whose maps are a multiple of it"
            )
        kernel = stride = tuple(size // made for size, made in sizes)
        padding = (0, 0)
    else:
        kernel, stride, padding = map(_pair, (module.kernel_size, module.stride, module.padding))
        odd = module.ceil_mode or module.divisor_override
        if odd or (any(padding) and not module.count_include_pad):
            raise InputError(
                f"{name} is an average pool with ceil_mode, divisor_override or without "
                "count_include_pad, whose windows do not all divide by the same number: build it "
                "without"
            )
    terms = {op: c / (kernel[0] * kernel[1]) for op, c in tracer.terms(x, name).items()}
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    return tracer.add(Op(name, "pool", terms, tuple(out.shape[1:]), options=options))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _flatten(tracer: _Tracer, name: str, module: Any, x: Any, out: Tensor) -> _Value:
    if out.dim() != 2:
        raise InputError(f"{name} flattens {list(x.shape)} to {list(out.shape)}: flatten to [N, F]")
    if out.shape == x.shape:
        return tracer.terms(x, name)
    return tracer.add(Op(name, "flatten", tracer.terms(x, name), tuple(out.shape[1:])))


_NOTES: tuple[tuple[Any, _Note], ...] = (
    (LeakyIntegrator, _integrator),
    (OTTTLIFNode, _neuron),
    ((nn.Linear, nn.Conv2d), _synapse),
    ((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    ((nn.AvgPool2d, nn.AdaptiveAvgPool2d), _pool),
    (nn.Flatten, _flatten),
    ((_DropoutNd, sj_layer.Dropout, sj_layer.Dropout2d, nn.Identity), _same),
)
"""What notes a call of each kind of module."""
