"""One training batch of each side, and the test that they compute the same thing."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import memopt
from spikingjelly.activation_based.learning import online_learning as sj_learning
from torch import Tensor, nn

from benchmarks import gpu_sides, networks
from sj_ottt import learning


def _online(
    train: Callable, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Tensor:
    """Train by a library's `ottt_online_training`; images x [N, C, H, W] are shown T times."""
    steps = y.shape[1]
    x_seq = x.unsqueeze(1).expand(-1, steps, *x.shape[1:])
    return train(model, optimizer, x_seq, y, lambda y, c: F.cross_entropy(y, c) / steps)[1]


def _own_loop(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """Train by a user's own loop over the time steps, which standardizes weights at every step."""
    optimizer.zero_grad()
    outputs = []
    for target in y.t():
        outputs.append(model(x))
        (F.cross_entropy(outputs[-1], target) / len(y.t())).backward()
    optimizer.step()
    return torch.stack(outputs, 1).detach()


def _bptt(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    out = model(x.unsqueeze(0).repeat(y.shape[1], 1, 1, 1, 1))
    F.cross_entropy(out.flatten(0, 1), y.t().flatten()).backward()
    optimizer.step()
    return out.transpose(0, 1).detach()


def _memopt(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """Train as `_bptt` does, with SpikingJelly's recomputation and compressed spikes."""
    if not getattr(model, "is_optimized", False):
        x_seq = x.unsqueeze(0).repeat(y.shape[1], 1, 1, 1, 1)
        memopt.optimize_memory(model, gpu_sides._Block, lambda net: net(x_seq), level=1)
        learning.reset_state(model)
        model.is_optimized = True
    return _bptt(model, optimizer, x, y)


def _ours(chunk: int | str) -> Callable[..., Tensor]:
    train = partial(learning.ottt_online_training, online=False, chunk=chunk)
    return partial(_online, train)


ALL_STEPS = 10**6
"""As a chunk: all steps of any sequence."""

OURS = partial(_online, partial(learning.ottt_online_training, online=False))
OURS_ONLINE = partial(_online, partial(learning.ottt_online_training, online=True))
THEIRS = partial(_online, partial(sj_learning.ottt_online_training, online=False))
THEIRS_ONLINE = partial(_online, partial(sj_learning.ottt_online_training, online=True))


@dataclass(frozen=True)
class Side:
    """What is measured, and what it is compared with.

    Attributes:
        build: Makes the network; `tiny=True` a small one for the equality test.
        train: Trains on one batch, x [N, 3, H, W] and targets [N, T]; returns the outputs
            [N, T, classes].
        reference: Does what `train` does in SpikingJelly's way.
        reference_build: Makes the network for `reference`.
        same_update: Whether parameters must agree after the batch, not the outputs alone.
    """

    build: Callable[..., nn.Module]
    train: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    reference_build: Callable[..., nn.Module]
    same_update: bool = True

    def ready(
        self,
        n: int,
        size: int,
        steps: int,
        device: str,
        prepare: Callable[[nn.Module], None] = lambda model: None,
    ) -> Callable[[], None]:
        """Return one training batch of a prepared network, ready to be called again and again."""
        model = self.build().to(device)
        prepare(model)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        x = torch.randn(n, 3, size, size, device=device)
        y = torch.randint(0, 10, (n, steps), device=device)

        def run() -> None:
            self.train(model, optimizer, x, y)
            learning.reset_state(model)

        return run

    def check(self, name: str, size: int, device: str) -> None:
        """Refuse to measure what does not compute what the reference does, in float64.

        Raises:
            SystemExit: The outputs, or the parameters after an update, differ.
        """
        results = []
        for build, train in ((self.build, self.train), (self.reference_build, self.reference)):
            model = build(tiny=True).to(device).double()
            before = [p.detach().clone() for p in model.parameters()]
            torch.manual_seed(1)
            x = 4 * torch.randn(2, 3, size, size).double().to(device)
            y = torch.randint(0, 10, (2, 4)).to(device)
            out = train(model, torch.optim.SGD(model.parameters(), 0.1), x, y)
            moved = [(p - b).detach() for p, b in zip(model.parameters(), before, strict=True)]
            results.append([out, *moved] if self.same_update else [out])
        for ours, theirs in zip(*results, strict=True):
            if not theirs.norm() > 0 or not (ours - theirs).norm() <= 1e-9 * theirs.norm():
                raise SystemExit(f"benchmarks: {name} differs from its reference; no figure given")


def _compiled_vgg(tiny: bool = False) -> nn.Module:
    return torch.compile(networks.our_vgg(tiny, backend="torch"), fullgraph=True)


_VGG = {"reference": THEIRS, "reference_build": networks.spikingjelly_vgg}
_AS_TIMM_GIVES_IT = {
    "reference": THEIRS,
    "reference_build": partial(gpu_sides.spikingjellys, "vgg"),
}
_RESNET = {"reference": THEIRS, "reference_build": networks.spikingjelly_nf_resnet}

_timm_vgg = partial(gpu_sides.ours, "vgg")
VGG = {
    "sj_ottt OTTT-A": Side(_timm_vgg, OURS, **_AS_TIMM_GIVES_IT),
    "sj_ottt OTTT-A, chunk auto": Side(_timm_vgg, _ours("auto"), **_AS_TIMM_GIVES_IT),
    "sj_ottt OTTT-A, chunk T": Side(_timm_vgg, _ours(ALL_STEPS), **_AS_TIMM_GIVES_IT),
    "sj_ottt OTTT-O": Side(
        _timm_vgg, OURS_ONLINE, **{**_AS_TIMM_GIVES_IT, "reference": THEIRS_ONLINE}
    ),
    "spikingjelly OTTT-A": Side(networks.spikingjelly_vgg, THEIRS, **_VGG),
    "spikingjelly BPTT": Side(networks.bptt_vgg, _bptt, **_VGG, same_update=False),
    "spikingjelly BPTT, memopt": Side(gpu_sides._memopt_vgg, _memopt, **_VGG, same_update=False),
    "authors' arithmetic": Side(networks.authors_vgg, THEIRS, **_VGG),
}
COMPILED_VGG = {
    "sj_ottt, own loop": Side(partial(networks.our_vgg, backend="torch"), _own_loop, **_VGG),
    "sj_ottt, own loop, torch.compile": Side(_compiled_vgg, _own_loop, **_VGG),
}
NF_RESNET34 = {
    "sj_ottt OTTT-A": Side(networks.our_nf_resnet, OURS, **_RESNET),
    "sj_ottt OTTT-A, chunk auto": Side(networks.our_nf_resnet, _ours("auto"), **_RESNET),
    "sj_ottt OTTT-O": Side(
        networks.our_nf_resnet, OURS_ONLINE, **{**_RESNET, "reference": THEIRS_ONLINE}
    ),
    "spikingjelly OTTT-A": Side(networks.spikingjelly_nf_resnet, THEIRS, **_RESNET),
}
