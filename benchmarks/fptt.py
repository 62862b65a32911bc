"""FPTT beside SpikingJelly's and BPTT, on the network of the add task, an update each step."""

import argparse
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from spikingjelly.activation_based.learning import online_learning as sj_learning
from torch import Tensor, nn

from benchmarks.measure import interleaved_medians
from sj_ottt.learning import FPTT, reset_state, train_step
from sj_ottt.neuron import LTCRecurrent

ALPHA = 0.5
STEPS = 100
TIMES = (50, 100, 200, 500, 1000)
# From a model and its optimizer: what trains on one batch, x_seq [T, N, 2] and targets [N].
Train = Callable[[nn.Module, torch.optim.Optimizer], Callable[[Tensor, Tensor], None]]


def network() -> nn.Module:
    """Return 128 recurrent LTC neurons and a linear readout, 82.7k parameters."""
    torch.manual_seed(0)
    return nn.Sequential(LTCRecurrent(2, 128, start="zero"), nn.Linear(128, 1))


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of outputs [N, 1] against targets [N]."""
    return F.mse_loss(output.squeeze(1), target)


def ours(form: str) -> Train:
    """Return our FPTT in one form; without weights and clipping, as SpikingJelly has neither."""

    def ready(
        model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Callable[[Tensor, Tensor], None]:
        fptt = FPTT(optimizer, ALPHA, clip=None, form=form, weight=lambda p, n: 1.0)
        return lambda x, y: train_step(model, fptt, x, y, loss_fn=loss_fn)

    return ready


def theirs(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Tensor, Tensor], None]:
    """Return what trains on a batch by SpikingJelly's `fptt_online_training`."""
    w_ra = sj_learning.fptt_online_training_init_w_ra(optimizer)

    def train(x_seq: Tensor, y: Tensor) -> None:
        targets = y.expand(len(x_seq), -1)
        sj_learning.fptt_online_training(model, optimizer, x_seq, targets, loss_fn, ALPHA, w_ra)
        reset_state(model)

    return train


def bptt(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Tensor, Tensor], None]:
    """Return what trains on a batch by BPTT, with a loss at every step."""
    return lambda x, y: train_step(model, optimizer, x, y, loss_fn=loss_fn)


SIDES: dict[str, Train] = {
    "sj_ottt FPTT": ours("lambda"),
    "sj_ottt FPTT, grad": ours("grad"),
    "spikingjelly FPTT": theirs,
    "BPTT": bptt,
}


def ready(side: Train, steps: int, n: int) -> tuple[nn.Module, Callable[[], None]]:
    """Return a fresh network and one training batch of it, to be called again and again."""
    model = network()
    train = side(model, torch.optim.Adam(model.parameters(), 1e-4))
    x, y = torch.rand(steps, n, 2), torch.rand(n)
    return model, lambda: train(x, y)


def check(side: Train, name: str) -> None:
    """Refuse a side whose first update is not plain Adam's: W̄ = W then, so nothing pulls.

    Raises:
        SystemExit: The parameters after the update differ.
    """
    results = []
    for each in (side, bptt):
        model, run = ready(each, 1, 4)
        torch.manual_seed(1)
        run()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    if not torch.allclose(*results, rtol=1e-5, atol=1e-6):
        raise SystemExit(f"{name}'s first update differs from its reference's: no figures")


def graph_bytes(run: Callable[[], object]) -> int:
    """Return the most bytes that autograd keeps for a backward pass, a storage counted once."""
    uses: Counter[int] = Counter()
    live = peak = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal live, peak
            self.tensor, storage = tensor, tensor.untyped_storage()
            self.key, self.size = storage.data_ptr(), storage.nbytes()
            live += 0 if uses[self.key] else self.size
            uses[self.key] += 1
            peak = max(peak, live)

        def __del__(self) -> None:
            nonlocal live
            uses[self.key] -= 1
            live -= 0 if uses[self.key] else self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        run()
    return peak


def fptt(args: argparse.Namespace) -> list[dict]:
    """Milliseconds per time step, the ratio to SpikingJelly's FPTT, graph memory against T."""
    runs = {}
    for name, side in SIDES.items():
        check(side, name)
        runs[name] = ready(side, STEPS, 128)[1]
    seconds = interleaved_medians(runs, args.repeats)
    reference = seconds["spikingjelly FPTT"]
    rows = []
    for name, side in SIDES.items():
        row = {"run": name, "ms/step": f"{1e3 * seconds[name] / STEPS:.2f}"}
        row["ratio"] = f"{seconds[name] / reference:.2f}"
        for t in TIMES:
            row[f"MiB, T={t}"] = f"{graph_bytes(ready(side, t, 16)[1]) / 2**20:.3f}"
        rows.append(row)
    return rows
