"""A program as the network that a user would write, from layers of several libraries."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from sj_ottt import layer, neuron
from tests.exactness.program import Program, Step

__all__ = ["WRAPPERS", "Network", "build"]


class Function(nn.Module):
    """A module of one's own that has no state."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


class Functional(nn.Module):
    """A synapse of one's own: parameters, and a function of PyTorch."""

    def __init__(self, like: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.weight, self.bias = like.weight, like.bias
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x, self.weight, self.bias)


class Factor(nn.Module):
    """An elementwise factor that learns."""

    def __init__(self, shape: tuple[int, ...], multiply: Callable[..., Any] = torch.mul):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(shape) + 0.5)
        self.multiply = multiply

    def forward(self, x: Any) -> Any:
        return self.multiply(x, self.weight)


class Block(nn.Module):
    """A module of one's own: some of the network's calls."""

    def __init__(self, calls: "list[Call]", inputs: list[str], outs: list[str]):
        super().__init__()
        self.parts_ = nn.ModuleList(call.module for call in calls)
        self.calls, self.inputs, self.outs = [(c.inputs, c.outs) for c in calls], inputs, outs

    def run(self, *inputs: Any) -> Any:
        signals = dict(zip(self.inputs, inputs, strict=True))
        for module, (names, outs) in zip(self.parts_, self.calls, strict=True):
            found = module(*[signals[name] for name in names])
            signals.update(zip(outs, [found] if len(outs) == 1 else found, strict=True))
        found = tuple(signals[name] for name in self.outs)
        return found[0] if len(found) == 1 else found

    def forward(self, *inputs: Any) -> Any:
        return self.run(*inputs)


class Checkpointed(Block):
    """The same, computed again in the backward pass."""

    reentrant = False

    def forward(self, *inputs: Any) -> Any:
        return checkpoint(self.run, *inputs, use_reentrant=self.reentrant)


class CheckpointedReentrant(Checkpointed):
    """With PyTorch's older form of it."""

    reentrant = True


class WithoutGradient(Block):
    """The same without gradients."""

    def forward(self, *inputs: Any) -> Any:
        with torch.no_grad():
            return self.run(*inputs)


class Call:
    """One line of a network's forward pass: a module, the signals it takes and gives."""

    def __init__(self, module: nn.Module, inputs: Any, outs: Any, first: int, last: int):
        self.module, self.inputs, self.outs = module, [*inputs], [*outs]
        self.first, self.last = first, last


CHAINS = {"ottt_sequential": layer.OTTTSequential, "sequential": nn.Sequential}
BLOCKS = {
    "module": Block,
    "eval": Block,
    "checkpoint": Checkpointed,
    "checkpoint reentrant": CheckpointedReentrant,
    "no_grad": WithoutGradient,
}


class Network(nn.Module):
    """The user's network.

    Attributes:
        parts: The module of each step, by its name in the program.
    """

    def __init__(self, program: Program):
        super().__init__()
        self.program = program
        self.parts: dict[str, nn.Module] = {}
        calls = []
        for number, step in enumerate(program.steps):
            if step.module not in self.parts:
                self.parts[step.module] = build(step)
            # What a feedback adds is added by hooks: its signal goes through as it is.
            module = nn.Identity() if step.kind == "feedback" else self.parts[step.module]
            calls.append(Call(module, step.inputs, step.outs, number, number))
        self.feedbacks = nn.ModuleList(
            self.parts[step.module] for step in program.steps if step.kind == "feedback"
        )
        self._connect()
        for group in program.groups:
            calls = _grouped(calls, group, program.outputs)
        self.main = Block(calls, ["x"], [*program.outputs])
        self.double()
        self.train()

    def _connect(self) -> None:
        steps = self.program.steps
        makers = {out: step.module for step in steps for out in step.outs}
        takers = {name: step.module for step in steps for name in step.inputs}
        for step in steps:
            if step.kind == "feedback":
                source, target = makers[step.options["source"]], takers[step.outs[0]]
                self.parts[step.module].connect(self.parts[source], self.parts[target])

    def train(self, mode: bool = True) -> "Network":
        """Set the mode, and freeze what the program says is frozen or in evaluation."""
        super().train(mode)
        evaluated = self.program.within("eval")
        for number, step in enumerate(self.program.steps):
            part = self.parts[step.module]
            if step.options.get("frozen"):
                part.requires_grad_(False)
            if number in evaluated or step.options.get("eval"):
                part.eval()
        return self

    def forward(self, x: Tensor) -> Any:
        found = self.main(x)
        if self.program.structure == "tensor":
            return found
        found = found if isinstance(found, tuple) else (found,)
        if self.program.structure == "dict":
            return dict(zip(self.program.outputs, found, strict=True))
        return list(found) if self.program.structure == "list" else found


def _grouped(calls: list[Call], group: Any, outputs: tuple[str, ...]) -> list[Call]:
    """Replace the calls of a group by one."""
    inner = [call for call in calls if group.first <= call.first and call.last <= group.last]
    outer = [call for call in calls if call not in inner]
    made = {name for call in inner for name in call.outs}
    inputs = [*dict.fromkeys(n for call in inner for n in call.inputs if n not in made)]
    wanted = {name for call in outer for name in call.inputs} | set(outputs)
    outs = [name for call in inner for name in call.outs if name in wanted]
    if group.how in CHAINS:
        assert len(inputs) == len(outs) == 1
        module: nn.Module = CHAINS[group.how](*[call.module for call in inner])
    else:
        module = BLOCKS[group.how](inner, inputs, outs)
    new = Call(module, inputs, outs, group.first, group.last)
    at = calls.index(inner[0])
    return [*[c for c in outer if calls.index(c) < at], new] + [
        c for c in outer if calls.index(c) > at
    ]


def build(step: Step) -> nn.Module:
    """Make the module of a step, as its option "form" says."""
    return getattr(_Builders, step.kind)(step.options)


SURROGATES = {"sigmoid": surrogate.Sigmoid, "atan": surrogate.ATan}


class _Builders:
    """One function for each kind of step."""

    @staticmethod
    def synapse(options: dict[str, Any]) -> nn.Module:
        return options["make"]()

    @staticmethod
    def neuron(options: dict[str, Any]) -> nn.Module:
        given = {k: v for k, v in options.items() if k in ("tau", "v_threshold", "v_reset")}
        return neuron.OTTTLIFNode(
            **given,
            decay_input=options.get("decay_input", False),
            surrogate_function=SURROGATES[options.get("surrogate", "sigmoid")](),
        )

    @staticmethod
    def map(options: dict[str, Any]) -> nn.Module:
        return options["make"]() if "make" in options else Function(options["op"])

    max_pool = function = map

    @staticmethod
    def norm(options: dict[str, Any]) -> nn.Module:
        found = options["make"]()
        nn.init.uniform_(found.weight, 1.0, 2.0)
        nn.init.uniform_(found.bias, 0.3, 0.9)
        return found

    @staticmethod
    def dropout(options: dict[str, Any]) -> nn.Module:
        return options["make"]()

    @staticmethod
    def feedback(options: dict[str, Any]) -> nn.Module:
        return layer.Feedback(options["make"]())

    @staticmethod
    def detach(options: dict[str, Any]) -> nn.Module:
        return Function(lambda x: x.detach())


def linear(form: str, n_in: int, n_out: int, bias: bool = True) -> dict[str, Any]:
    """The options of a linear synapse in a form: "ours", "torch", "spikingjelly", "functional"."""

    def make() -> nn.Module:
        if form == "ws":
            found: nn.Module = layer.WSLinear(n_in, n_out, bias=bias)
        elif form == "functional":
            found = Functional(nn.Linear(n_in, n_out, bias=bias), F.linear)
        else:
            found = LIBRARIES[form].Linear(n_in, n_out, bias=bias)
        return _drive(found)

    return {"make": make, "op": F.linear, "standardized": form == "ws"}


LIBRARIES = {"ours": layer, "torch": nn, "spikingjelly": sj_layer}


def conv(
    form: str, c_in: int, c_out: int, kernel: int = 3, bias: bool = True, **hyper: Any
) -> dict[str, Any]:
    """The options of a convolution; by default it keeps the size."""
    hyper = {"padding": kernel // 2, **hyper}

    def op(x: Tensor, weight: Tensor, b: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, b, **hyper)

    def make() -> nn.Module:
        if form == "ws":
            found: nn.Module = layer.WSConv2d(c_in, c_out, kernel, bias=bias, **hyper)
        elif form == "functional":
            found = Functional(nn.Conv2d(c_in, c_out, kernel, bias=bias, **hyper), op)
        else:
            found = LIBRARIES[form].Conv2d(c_in, c_out, kernel, bias=bias, **hyper)
        return _drive(found)

    return {"make": make, "op": op, "standardized": form == "ws"}


def conv_transpose(
    form: str, c_in: int, c_out: int, kernel: int = 2, bias: bool = True, **hyper: Any
) -> dict[str, Any]:
    """The options of a transposed convolution; by default it doubles the size."""
    hyper = {"stride": 2, **hyper}

    def op(x: Tensor, weight: Tensor, b: Tensor | None = None) -> Tensor:
        return F.conv_transpose2d(x, weight, b, **hyper)

    def make() -> nn.Module:
        library = nn if form == "functional" else LIBRARIES[form]
        found = library.ConvTranspose2d(c_in, c_out, kernel, bias=bias, **hyper)
        _drive(found)
        return Functional(found, op) if form == "functional" else found

    return {"make": make, "op": op}


def factor(shape: tuple[int, ...], multiply: Callable[..., Any] = torch.mul) -> dict[str, Any]:
    """The options of an elementwise factor that learns."""
    return {"make": lambda: Factor(shape, multiply), "op": torch.mul}


def _drive(module: nn.Module) -> nn.Module:
    """Make a synapse strong enough for neurons to fire, and not so strong that all do always."""
    inner = getattr(module, "weight", None)
    if getattr(module, "gain", None) is not None:
        nn.init.constant_(module.gain, 2.0)
    elif inner is not None:
        fan_in = inner[0].numel() if not isinstance(module, nn.ConvTranspose2d) else len(inner)
        nn.init.normal_(inner, mean=min(0.4 / fan_in**0.5, 1.5 / fan_in), std=1.6 / fan_in**0.5)
    if getattr(module, "bias", None) is not None:
        nn.init.uniform_(module.bias, 0.0, 0.6)
    return module


class Wrapper(nn.Module):
    """A module that holds the network and calls it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.inner = network

    def forward(self, *args: Any) -> Any:
        return self.inner(*args)


class DataParallelLike(nn.Module):
    """What DistributedDataParallel and DataParallel look like from outside."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.module = network

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


def _scripted_hook(network: nn.Module) -> nn.Module:
    network.register_forward_hook(lambda module, args, out: None)
    return network


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda network: network,
    "own": Wrapper,
    "sequential": nn.Sequential,
    "ottt_sequential": layer.OTTTSequential,
    "data_parallel": nn.DataParallel,
    "ddp": DataParallelLike,
    "ema": AveragedModel,
    "hook": _scripted_hook,
    "compiled": lambda network: torch.compile(network, backend="eager"),
}
