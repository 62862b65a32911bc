"""Trainings that several processes share, and one does alone: what both must agree on."""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from sj_ottt import InputError, layer, neuron, set_rule
from sj_ottt.learning import FPTT, ottt_online_training, predict, share_buffers, train_step

T, N, CLASSES = 4, 5, 3
CASES: dict[str, Callable[[int, int], dict]] = {}


def case(function):
    CASES[function.__name__.removeprefix("_")] = function
    return function


def network(seed: int = 0, unused: bool = False) -> nn.Module:
    """A convolution, a standardized one and a linear layer, with neurons between that fire."""
    torch.manual_seed(seed)
    net = layer.OTTTSequential(
        layer.Conv2d(2, 6, 3, padding=1),
        neuron.OTTTLIFNode(),
        layer.WSConv2d(6, 8, 3, padding=1),
        neuron.OTTTLIFNode(tau=1.5),
        layer.Flatten(),
        layer.WSLinear(8 * 36, 8),
        neuron.OTTTLIFNode(),
        layer.Linear(8, CLASSES),
    ).double()
    for module in net:
        if getattr(module, "gain", None) is not None:
            nn.init.constant_(module.gain, 4.0)
    nn.init.normal_(net[0].weight, std=0.7)
    if unused:
        net.spare = nn.Parameter(torch.ones(3).double())
    return net


def batch(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x_seq = 2 * torch.rand(T, n, 2, 6, 6, generator=generator).double()
    return x_seq, torch.randint(CLASSES, (n,), generator=generator)


def part(rank: int, size: int, n: int) -> slice:
    """The samples of a process; the first ones have one more where they do not share evenly."""
    counts = [n // size + (r < n % size) for r in range(size)]
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))


def train(rank, size, *, net=None, n=N, updates=3, wrap=False, make=None, **kwargs) -> dict:
    """Train on the same batch a few times; return all parameters, and what went on."""
    net = network() if net is None else net
    model = DistributedDataParallel(net) if wrap and size > 1 else net
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    trainer = optimizer if make is None else make(optimizer)
    x_seq, target = batch(n)
    mine = part(rank, size, n)
    losses = []
    for update in range(updates):
        torch.manual_seed(update)  # for backward_steps, of which the first process's count
        loss, _ = train_step(model, trainer, x_seq[:, mine], target[mine], **kwargs)
        losses.append(loss * len(target[mine]) / n)
    grads = {f"grad {k}": p.grad for k, p in net.named_parameters() if p.grad is not None}
    return {"loss": sum(losses), **grads, **net.state_dict()}


for rule in ("ottt", "sltt", "ndot", "bptt"):
    for update in ("accumulate", "online"):
        if (rule, update) == ("bptt", "online"):
            continue

        def _rule(rank, size, rule=rule, update=update):
            net = network()
            set_rule(net, rule)
            return train(rank, size, net=net, update=update)

        CASES[f"{rule} {update}"] = _rule

for form in ("lambda", "grad"):
    CASES[f"fptt {form}"] = lambda rank, size, form=form: train(
        rank, size, make=lambda o: FPTT(o, alpha=0.5, form=form, parts=3)
    )
    CASES[f"fptt {form}, one sample"] = lambda rank, size, form=form: train(
        rank, size, n=1, make=lambda o: FPTT(o, alpha=0.5, form=form, parts=3)
    )
for name, how in {
    "wrapped": {"wrap": True},
    "wrapped online": {"wrap": True, "update": "online"},
    "one sample": {"n": 1},
    "one sample online": {"n": 1, "update": "online"},
    "clipped": {"clip_norm": 0.05},
    "backward_steps": {"backward_steps": 2},
    "backward_steps online": {"backward_steps": 2, "update": "online"},
    "one sample, backward_steps online": {"n": 1, "backward_steps": 2, "update": "online"},
    "scaler": {"scaler": "on"},
    "one sample, scaler": {"scaler": "on", "n": 1},
}.items():

    def _plain(rank, size, how=how):
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if "scaler" in how else None
        result = train(rank, size, **{**how, "scaler": scaler})
        return {**result, "scale": torch.tensor(scaler.get_scale() if scaler else 1.0)}

    CASES[name] = _plain


@case
def _accumulation(rank, size):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x_seq, target = batch(7)
    for i, sample in enumerate((slice(0, 4), slice(4, 7))):  # of unequal size
        x, y = x_seq[:, sample], target[sample]
        mine = part(rank, size, len(y))
        train_step(net, optimizer, x[:, mine], y[mine], accumulation=(i, 2))
    return dict(net.state_dict())


@case
def _frozen(rank, size):
    net = network()
    net[2].requires_grad_(False)
    return train(rank, size, net=net)


@case
def _unused(rank, size):
    """Weight decay must not reach what has no gradient anywhere."""
    return train(rank, size, net=network(unused=True))


@case
def _average(rank, size):
    net = network()
    ema = AveragedModel(net)
    train(rank, size, net=net, ema=ema)
    return dict(ema.state_dict())


@case
def _lengths(rank, size):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x_seq, target = batch()
    mine = part(rank, size, N)
    lengths = torch.tensor([2, 4, 1, 3, 2])
    train_step(net, optimizer, x_seq[:, mine], target[mine], lengths=lengths[mine])
    return dict(net.state_dict())


for name, n, online in (
    ("ottt_online_training", N, True),
    ("ottt_online_training, one sample", 1, False),
    ("ottt_online_training, one sample online", 1, True),
):

    @case
    def _by_its_name(rank, size, n=n, online=online):
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        x_seq, target = batch(n)
        mine = part(rank, size, n)
        ottt_online_training(
            net,
            optimizer,
            x_seq[:, mine].transpose(0, 1),
            target[mine, None].expand(-1, T),
            F.cross_entropy,
            online=online,
        )
        return dict(net.state_dict())

    CASES[name] = CASES.pop("by_its_name")


for name in ("test_ottt_vgg", "test_ottt_vggf", "test_ottt_nf_resnet"):

    @case
    def _model(rank, size, name=name):
        torch.manual_seed(0)
        net = timm.create_model(name, in_chans=2, num_classes=CLASSES).double()
        x_seq, target = batch()
        x_seq = 3 * F.interpolate(x_seq.flatten(0, 1), 32).unflatten(0, (T, N))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        mine = part(rank, size, N)
        for _ in range(2):
            train_step(net, optimizer, x_seq[:, mine], target[mine], update="online")
        return dict(net.state_dict())

    CASES[name] = CASES.pop("model")


@case
def _prediction(rank, size):
    net = network()
    model = DistributedDataParallel(net) if size > 1 else net
    x_seq, _ = batch()
    mine = part(rank, size, N)
    logits = torch.zeros(N, CLASSES).double()
    logits[mine] = predict(model, x_seq[:, mine])
    if size > 1:
        dist.all_reduce(logits)
    return {"logits": logits}


def refused(function) -> str:
    try:
        function()
    except InputError as error:
        return str(error)
    return ""


def together(rank: int, size: int) -> dict[str, object]:
    """What only several processes can get wrong."""
    found: dict[str, object] = {}
    x_seq, target = batch()
    mine = part(rank, size, N)

    def optimizer_of(net, lr=0.1):
        return torch.optim.SGD(net.parameters(), lr=lr)

    # A loss that is not finite in one process stops all, and no parameter moves.
    for update in ("accumulate", "online"):
        net = network()
        before = [p.detach().clone() for p in net.parameters()]

        def loss_fn(y, t):
            return F.cross_entropy(y, t) * (float("nan") if rank == 1 else 1.0)

        found[f"nan {update}"] = refused(
            lambda net=net, update=update, loss_fn=loss_fn: train_step(
                net,
                optimizer_of(net),
                x_seq[:, mine],
                target[mine],
                loss_fn=loss_fn,
                update=update,
            )
        )
        same = map(torch.equal, before, net.parameters())
        found[f"nan {update} moved"] = not all(same)

    # A gradient that overflows in one process: all leave the update out, and halve the scale.
    net = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * (float("inf") if rank == 1 else 1.0)

    before = [p.detach().clone() for p in net.parameters()]
    train_step(
        net,
        optimizer_of(net),
        x_seq[:, mine],
        target[mine],
        scaler=scaler,
        loss_fn=lambda y, t: F.cross_entropy(Overflow.apply(y), t),
    )
    found["overflow"] = (scaler.get_scale(), all(map(torch.equal, before, net.parameters())))

    net = network(seed=rank)
    found["other weights"] = refused(
        lambda: train_step(net, optimizer_of(net), x_seq[:, mine], target[mine])
    )
    net = network()
    found["lengths online"] = refused(
        lambda: train_step(
            net,
            optimizer_of(net),
            x_seq[:, mine],
            target[mine],
            update="online",
            lengths=torch.full((len(target[mine]),), 2),
        )
    )
    found["no sample"] = refused(
        lambda: train_step(net, optimizer_of(net), x_seq[:, :0], target[:0])
    )
    inside = layer.OTTTSequential(DistributedDataParallel(network()))
    found["inside"] = refused(
        lambda: train_step(inside, optimizer_of(inside), x_seq[:, mine], target[mine])
    )
    from torch.distributed.fsdp import fully_shard

    sharded = network()
    fully_shard(sharded)
    found["sharded"] = refused(
        lambda: train_step(sharded, optimizer_of(sharded), x_seq[:, mine], target[mine])
    )
    for how in ({"update": "online"}, {"backward_steps": 1}, {"chunk": 2}):
        net = network()
        found[f"other T, {next(iter(how))}"] = refused(
            lambda net=net, how=how: train_step(
                net, optimizer_of(net), x_seq[rank:, mine], target[mine], **how
            )
        )
    # Each process is a group of its own here, and shares nothing with the other.
    groups = [dist.new_group([other]) for other in range(size)]
    apart = nn.BatchNorm2d(2)
    apart.running_mean.fill_(rank)
    share_buffers(DistributedDataParallel(apart, process_group=groups[rank]))
    found["own group"] = apart.running_mean[0].item() == rank
    # The statistics of batch norm are those of the first process.
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        neuron.OTTTLIFNode(),
        nn.Flatten(),
        layer.Linear(64, CLASSES),
    ).double()
    for _ in range(2):
        train_step(net, optimizer_of(net), x_seq[:, mine], target[mine])
    train_step(
        net, optimizer_of(net, 0.0), x_seq[:, :0] if rank else x_seq, target[:0] if rank else target
    )
    found["weights"] = net[0].weight.detach()
    return found


def run_all(folder: Path, rank: int, size: int) -> None:
    """Run all as one process of several, and save what came out."""
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    results: dict = {name: function(rank, size) for name, function in CASES.items()}
    results["together"] = together(rank, size)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
