"""The sides that are measured on a GPU, and the test that each computes what it should."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import memopt
from spikingjelly.activation_based.learning import online_learning as sj_learning
from torch import Tensor, nn

from benchmarks import networks
from sj_ottt import learning, neuron, set_rule

NAMES = {"vgg": "ottt_vgg11_ws", "nf_resnet34": "ottt_nf_resnet34"}
TINY = {"vgg": "test_ottt_vgg", "nf_resnet34": "test_ottt_nf_resnet"}
_TINY_STEPS = 3


@dataclass(frozen=True)
class Case:
    """What is trained on: a network, a batch of static images, time steps, a dtype."""

    network: str
    batch: int
    dtype: torch.dtype = torch.float32
    steps: int = 0

    def __post_init__(self) -> None:
        if not self.steps:
            object.__setattr__(self, "steps", 6 if self.network == "vgg" else 4)

    def __str__(self) -> str:
        return f"{self.network}, batch {self.batch}, {self.columns()['dtype']}"

    @property
    def size(self) -> int:
        """Height and width of the images."""
        return 32 if self.network == "vgg" else 64

    def columns(self) -> dict[str, object]:
        """Return the columns of a row that say so."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"network": self.network, "batch": self.batch, "T": self.steps, "dtype": dtype}

    def autocast(self, device: str) -> AbstractContextManager[object]:
        """Return the block that computes in the dtype."""
        enabled = self.dtype != torch.float32
        return torch.autocast(torch.device(device).type, self.dtype, enabled=enabled)


Train = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor, int], Tensor]
"""(model, optimizer, images [N, 3, H, W], classes [N], T) → outputs, summed over time."""


@dataclass(frozen=True)
class Side:
    """What is measured, and what it is compared with.

    Attributes:
        build: (whether a tiny one is wanted) → the network.
        train: Trains on one batch.
        reference: (build, train) of what gives the same gradient.
        channels_last: Whether the network and its input are laid out so.
        graph: Whether passes are recorded, whose memory stands ready and is no peak.
    """

    build: Callable[[bool], nn.Module]
    train: Train
    reference: tuple[Callable[[bool], nn.Module], Train]
    channels_last: bool = False
    graph: bool = False
    _checked: list[str] = field(default_factory=list, compare=False)

    def _made(self, build: Callable[[bool], nn.Module], tiny: bool, device: str) -> nn.Module:
        with torch.device(device):  # random numbers of many weights take a CPU seconds
            model = build(tiny)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def ready(self, case: Case, device: str) -> Callable[[], None]:
        """Return one training batch, ready to be called again and again."""
        model = self._made(self.build, False, device)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        torch.manual_seed(1)
        x = torch.randn(case.batch, 3, case.size, case.size, device=device)
        x = x.contiguous(memory_format=torch.channels_last) if self.channels_last else x
        y = torch.randint(0, 10, (case.batch,), device=device)

        def run() -> None:
            with case.autocast(device):
                self.train(model, optimizer, x, y, case.steps)
            learning.reset_state(model)

        return run

    def check(self, device: str) -> None:
        """Refuse to measure what does not compute what its reference does, in float64.

        Raises:
            SystemExit: The outputs, or the parameters after an update, differ.
        """
        if device in self._checked:
            return
        expected = _REFERENCES.get(id(self.reference))
        with torch.backends.cudnn.flags(benchmark=False):
            if expected is None:
                expected = self._outcome(*self.reference, device)
                _REFERENCES[id(self.reference)] = expected
            outcome = self._outcome(self.build, self.train, device)
        for found, right in zip(outcome, expected, strict=True):
            if not right.norm() > 0 or not (found - right).norm() <= 1e-9 * right.norm():
                raise SystemExit("differs from its reference in float64; no figure given")
        self._checked.append(device)

    def _outcome(
        self, build: Callable[[bool], nn.Module], train: Train, device: str
    ) -> list[Tensor]:
        """Return the outputs of a tiny network, and how far each parameter moves."""
        model = self._made(build, True, device).double()
        before = [p.detach().clone() for p in model.parameters()]
        torch.manual_seed(1)
        x, y = 4 * torch.randn(2, 3, 32, 32).double(), torch.randint(0, 10, (2,))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        out = train(model, optimizer, x.to(device), y.to(device), _TINY_STEPS)
        moved = [(p - b).detach() for p, b in zip(model.parameters(), before, strict=True)]
        return [out.detach(), *moved]


_REFERENCES: dict[int, list[Tensor]] = {}
"""What references have given, by their addresses: several sides have the same one."""


def ours(network: str, tiny: bool = False, backend: str = "auto") -> nn.Module:
    """Return the network that timm gives, with what starts at 0 made to count."""
    return networks.from_timm((TINY if tiny else NAMES)[network], backend)


def spikingjellys(network: str, tiny: bool = False) -> nn.Module:
    """Return the same network and weights, each layer and neuron SpikingJelly's."""
    model = ours(network, tiny)
    networks._on_spikingjelly(model)
    return model


def _ours_through_time(tiny: bool) -> nn.Module:
    return set_rule(networks.our_vgg(tiny, backend="torch"), "bptt")


class _Block(nn.Sequential):
    """What memopt computes a second time in the backward pass."""


def _memopt_vgg(tiny: bool = False) -> nn.Module:
    """Return the VGG for BPTT in blocks of a convolution and its neurons, for memopt."""
    parts = list(networks.bptt_vgg(tiny))
    blocks: list[nn.Module] = []
    for part in parts:
        starts = not isinstance(part, networks.sj_neuron.LIFNode)
        blocks += [_Block(part)] if starts else []
        if not starts:
            blocks[-1].append(part)
    return nn.Sequential(*blocks)


def _train_ours(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    steps: int,
    chunk: int | str = 1,
    cuda_graph: bool = False,
) -> Tensor:
    chunk = steps if chunk == "T" else chunk
    options: dict[str, Any] = {"chunk": chunk, "cuda_graph": cuda_graph}
    return learning.train_step(
        model, optimizer, x, y, steps=steps, loss_fn=F.cross_entropy, **options
    )[1]


def _train_theirs(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int
) -> Tensor:
    x_seq = x.unsqueeze(1).expand(-1, steps, *x.shape[1:])
    y_seq = y.unsqueeze(1).expand(-1, steps)
    return sj_learning.ottt_online_training(
        model, optimizer, x_seq, y_seq, lambda out, y: F.cross_entropy(out, y) / steps, False
    )[1].sum(1)


def _train_bptt(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int
) -> Tensor:
    optimizer.zero_grad()
    out = model(x.unsqueeze(0).repeat(steps, 1, 1, 1, 1))
    F.cross_entropy(out.flatten(0, 1), y.repeat(steps)).backward()
    optimizer.step()
    learning.reset_state(model)
    return out.detach().sum(0)


def _train_memopt(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int
) -> Tensor:
    if not getattr(model, "is_optimized", False):
        x_seq = x.unsqueeze(0).repeat(steps, 1, 1, 1, 1)
        memopt.optimize_memory(model, _Block, lambda net: net(x_seq), level=1)
        learning.reset_state(model)
        model.is_optimized = True
    return _train_bptt(model, optimizer, x, y, steps)


@functools.cache  # so that each is checked once
def sides_of(network: str) -> dict[str, Side]:
    """Return what is measured of a network, by name."""
    reference = (partial(spikingjellys, network), _train_theirs)
    build = partial(ours, network)

    def our(chunk: int | str, cuda_graph: bool = False, **options: bool) -> Side:
        train = partial(_train_ours, chunk=chunk, cuda_graph=cuda_graph)
        return Side(build, train, reference, graph=cuda_graph, **options)

    sides = {
        "sj_ottt, chunk 1": our(1),
        "sj_ottt, chunk auto": our("auto"),
        "sj_ottt, chunk auto, graph": our("auto", True),
        "sj_ottt, chunk T": our("T"),
        "sj_ottt, chunk T, graph": our("T", True),
        "sj_ottt, chunk 1, graph": our(1, True),
        "sj_ottt, chunk T, graph, channels last": our("T", True, channels_last=True),
    }
    if network == "vgg":
        theirs = (networks.our_vgg, _train_ours)
        sides["spikingjelly OTTT-A"] = Side(networks.spikingjelly_vgg, _train_theirs, theirs)
        through_time = (_ours_through_time, _train_ours)
        sides["spikingjelly BPTT"] = Side(networks.bptt_vgg, _train_bptt, through_time)
        plain = (networks.bptt_vgg, _train_bptt)
        sides["spikingjelly BPTT, memopt"] = Side(_memopt_vgg, _train_memopt, plain)
    else:
        sides["spikingjelly OTTT-A"] = Side(
            partial(spikingjellys, network), _train_theirs, (build, _train_ours)
        )
    return sides


def short_training(
    device: str,
    *,
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
    cuda_graph: bool = False,
    channels_last: bool = False,
    epochs: int = 12,
) -> float:
    """Train a small VGG on 1,437 handwritten digits; return its accuracy on 360 others."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=device).unsqueeze(1)
    images = F.interpolate(images / 8 - 1, scale_factor=2.0).repeat(1, 3, 1, 1)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.tensor(digits.target, device=device)
    torch.manual_seed(0)
    order = torch.randperm(len(labels), device="cpu").to(device)
    train, test = order[:1437], order[1437:]
    node = partial(neuron.OTTTLIFNode, trace_dtype="packed", backend=backend)
    model = timm.create_model("ottt_vgg5_ws", num_classes=10, in_chans=3, neuron=node).to(device)
    model = model.to(memory_format=torch.channels_last) if channels_last else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, epochs * (len(train) // 128))
    case = Case("vgg", 128, dtype)
    for _ in range(epochs):
        shuffled = train[torch.randperm(len(train), device="cpu").to(device)]
        for batch in shuffled.split(128)[: len(train) // 128]:
            with case.autocast(device):
                options = {"chunk": "auto", "cuda_graph": cuda_graph}
                learning.train_step(
                    model, optimizer, images[batch], labels[batch], steps=4, **options
                )
            rate.step()
    with case.autocast(device):
        logits = learning.predict(model, images[test], steps=4)
    return (logits.argmax(1) == labels[test]).float().mean().item()
