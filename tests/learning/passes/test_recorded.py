"""Passes that are recorded as a CUDA graph: what is recorded when, and what is refused.

Where there is no GPU, a stand-in runs the function again at each replay, into the same tensors.
"""

import gc
import weakref

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sj_ottt import InputError, learning, set_rule
from sj_ottt.errors import NotFiniteError
from sj_ottt.learning.passes import recorded
from tests.networks import relative_error


class StandIn:
    """Runs a function three times, and again at each replay, as a graph would."""

    def __init__(self, run):
        self._run = run
        for _ in range(recorded.WARM_UPS):
            run()
        self.returned = run()

    def replay(self):
        pairs = zip(tree_leaves(self.returned), tree_leaves(self._run()), strict=True)
        for old, new in pairs:
            assert (old is None) == (new is None)
            if old is not None:
                old.copy_(new)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    if request.param == "cpu":
        monkeypatch.setattr(recorded, "_Graph", StandIn)
        monkeypatch.setattr(recorded, "_DEVICE", "cpu")
    return request.param


def network(device, rule="ottt", **options):
    torch.manual_seed(0)
    model = timm.create_model("test_ottt_vgg", num_classes=4, rule=rule, **options)
    nn.init.normal_(model.fc.weight)
    return model.to(device, torch.float64)


def batches(device, count, n=3):
    torch.manual_seed(1)
    for _ in range(count):
        x_seq = 3 * torch.randn(4, n, 3, 32, 32, dtype=torch.float64)
        yield x_seq.to(device), torch.randint(0, 4, (n,)).to(device)


def trained(device, cuda_graph, rule="ottt", **options):
    """Losses, predictions and weights of a short training with a rate that falls."""
    model = network(device, rule)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    average = AveragedModel(model)
    found = []
    for i, (x_seq, target) in enumerate(batches(device, 4)):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + i)
        options |= {"ema": average, "clip_norm": 0.5, "cuda_graph": cuda_graph}
        found += learning.train_step(model, optimizer, x_seq, target, **options)
    return [*found, *model.parameters(), *average.parameters()]


@pytest.mark.parametrize(
    "options", [{}, {"chunk": 4}, {"chunk": "auto"}, {"rule": "bptt"}, {"rule": "sltt"}], ids=str
)
def test_trains_as_without(device, options):
    ours, plain = (trained(device, graph, **options) for graph in (True, False))
    for a, b in zip(ours, plain, strict=True):
        assert b.norm() > 0 and relative_error(a, b) < 1e-9


def test_records_once_for_a_kind_of_batch(device, monkeypatch):
    made = []
    graph = recorded._Graph
    monkeypatch.setattr(recorded, "_Graph", lambda run: made.append(1) or graph(run))
    model = network(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loss_fn = learning.CrossEntropyMSE(0.1)

    def step(n=3, loss_fn=None, **options):
        ((x_seq, target),) = batches(device, 1, n)
        learning.train_step(
            model, optimizer, x_seq, target, loss_fn=loss_fn, cuda_graph=True, **options
        )
        return len(made)

    assert [step(), step(), step(2), step(), step(2)] == [1, 1, 2, 2, 2]
    model.layer1.requires_grad_(False)
    assert [step(), step()] == [3, 3]
    set_rule(model, "sltt")
    assert [step(), step()] == [4, 4]
    with pytest.warns(UserWarning, match="loss_fn is another object"):
        assert step(loss_fn=loss_fn) == 5
    assert [step(loss_fn=loss_fn), step(chunk=2, loss_fn=loss_fn)] == [5, 6]
    assert len(recorded._RECORDED[model]) <= recorded.MAX_GRAPHS


def test_a_batch_that_is_not_finite_changes_nothing(device):
    model = network(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [p.clone() for p in model.parameters()]
    (x_seq, target), (broken, _) = batches(device, 2)
    broken[1, 0, 0, 5, 5] = torch.nan

    def loss_fn(y, target):
        return (y * scale).square().mean()

    scale = torch.ones((), dtype=torch.float64, device=device)
    options = {"loss_fn": loss_fn, "cuda_graph": True}
    with pytest.raises(InputError, match="x_seq holds values that are not finite"):
        learning.train_step(model, optimizer, broken, target, **options)
    scale.fill_(torch.inf)
    with pytest.raises(NotFiniteError, match="the loss of time step 0 is"):
        learning.train_step(model, optimizer, x_seq, target, **options)
    assert all(map(torch.equal, before, model.parameters()))
    scale.fill_(1.0)
    learning.train_step(model, optimizer, x_seq, target, **options)
    assert not any(map(torch.equal, before, model.parameters()))


def test_the_first_call_draws_what_it_would_draw_without(device):
    """Warming up leaves random numbers and statistics where they were."""
    results = []
    for cuda_graph in (False, True):
        model = network(device, drop_rate=0.5)
        norm = nn.BatchNorm2d(3).to(device, torch.float64)
        chain = nn.Sequential(norm, model)
        optimizer = torch.optim.SGD(chain.parameters(), 0.1)
        torch.manual_seed(7)
        for x_seq, target in batches(device, 2):
            learning.train_step(chain, optimizer, x_seq, target, cuda_graph=cuda_graph)
        results.append([*chain.parameters(), norm.running_mean, norm.num_batches_tracked])
    for a, b in zip(*results, strict=True):
        assert relative_error(a.double(), b.double()) < 1e-9


def test_a_replay_asks_for_little(device):
    """All but the update and what the host looks at is in the graph; nothing walks a network."""

    class Count(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.found += 1
            return function(*args, **(kwargs or {}))

    model = network(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, foreach=True)
    options = {"cuda_graph": True, "chunk": 4, "clip_norm": 1.0}
    (first, second) = batches(device, 2)
    learning.train_step(model, optimizer, *first, **options)
    with pytest.MonkeyPatch.context() as patch, Count() as count:
        patch.setattr(recorded._Graph, "replay", lambda graph: None)
        for walk in ("modules", "named_modules", "parameters", "named_parameters", "buffers"):
            patch.setattr(nn.Module, walk, None)
        learning.train_step(model, optimizer, *second, **options)
    assert 0 < count.found <= 20


def test_what_is_recorded_does_not_keep_a_network_alive(device, monkeypatch):
    class Graph:
        def __init__(self, run):
            self.returned = run()

        def replay(self):
            pass

    if device == "cpu":
        monkeypatch.setattr(recorded, "_Graph", Graph)
    model = network(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x_seq, target in batches(device, 2):
        learning.train_step(model, optimizer, x_seq, target, cuda_graph=True)
    alive = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("name", ["test_ottt_vgg", "test_ottt_nf_resnet"])
@pytest.mark.parametrize("options", [{}, {"chunk": 2}, {"reset": False}], ids=str)
@pytest.mark.parametrize("rule", ["ottt", "ndot", "bptt"])
def test_no_graph_outlives_a_call(name, options, rule):
    """A graph that is recorded next would have to wait for what it ran on."""
    model = timm.create_model(name, num_classes=4, rule=rule)

    def loss_fn(y, target):
        for parameter in model.parameters():
            node_of(parameter).metadata["marked"] = True
        return y.square().mean()

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x_seq, target = torch.randn(4, 2, 3, 32, 32), torch.zeros(2)
    learning.train_step(model, optimizer, x_seq, target, loss_fn=loss_fn, **options)
    assert not any("marked" in node_of(p).metadata for p in model.parameters())


def node_of(parameter):
    """The node that adds to a parameter's gradient, which all graphs that are alive share."""
    return parameter.expand_as(parameter).grad_fn.next_functions[0][0]


def test_a_graph_that_the_caller_holds_is_not_waited_for(device):
    model = network(device)
    ((x_seq, target),) = batches(device, 1)
    held = model(x_seq[0])
    learning.reset_state(model)
    nodes = [node_of(p) for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    before = [(p.data_ptr(), p.clone()) for p in model.parameters()]
    learning.train_step(model, optimizer, x_seq, target, cuda_graph=True)
    assert not any(node is node_of(p) for node, p in zip(nodes, model.parameters(), strict=True))
    for (address, value), p in zip(before, model.parameters(), strict=True):
        assert p.data_ptr() == address and torch.equal(p, value)
    assert held.requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("wait", [torch.Tensor.item, torch.Tensor.cpu])
def test_a_failed_recording_says_so_and_leaves_pytorch_usable(wait):
    def loss_fn(y, target):
        wait(y.sum())
        return y.square().mean()

    model = network("cuda", drop_rate=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ((x_seq, target),) = batches("cuda", 1)
    stream = torch.cuda.current_stream()
    with pytest.raises(InputError, match=r"cannot be recorded as a CUDA graph .*: take"):
        learning.train_step(model, optimizer, x_seq, target, loss_fn=loss_fn, cuda_graph=True)
    assert torch.cuda.current_stream() == stream
    torch.manual_seed(3)
    first = torch.rand(5, device="cuda")
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(5, device="cuda"))
    torch.cuda.empty_cache()
    for _ in range(2):
        learning.train_step(model, optimizer, x_seq, target, cuda_graph=True)
    assert model.fc.weight.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"update": "online"}, r'knows no update="online": leave'),
        ({"backward_steps": 2}, "knows no backward_steps"),
        ({"reset": False}, "knows no reset=False"),
        ({"accumulation": (0, 2)}, "knows no accumulation"),
        ({"lengths": torch.tensor([4, 3, 2])}, "knows no lengths"),
        ({"scaler": torch.amp.GradScaler("cpu")}, "knows no scaler"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses_what_a_graph_cannot_do(device, options, words):
    model = network(device)
    ((x_seq, target),) = batches(device, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match=words):
        learning.train_step(model, optimizer, x_seq, target, cuda_graph=True, **options)


def test_refuses_what_would_run_once(device):
    ((x_seq, target),) = batches(device, 1)
    for hook, words in (
        (lambda model: model.layer1.register_forward_hook(print), "layer1 has a hook"),
        (lambda model: model.fc.weight.register_hook(print), "parameter fc.weight has a hook"),
    ):
        model = network(device)
        hook(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(InputError, match=words):
            learning.train_step(model, optimizer, x_seq, target, cuda_graph=True)


def test_refuses_a_cpu():
    model = network("cpu")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ((x_seq, target),) = batches("cpu", 1)
    with pytest.raises(InputError, match="on one GPU, and they are on cpu: move"):
        learning.train_step(model, optimizer, x_seq, target, cuda_graph=True)
    with pytest.raises(InputError, match="one tensor, not list"):
        learning.train_step(
            model, optimizer, x_seq, [target], loss_fn=lambda y, t: y.sum(), cuda_graph=True
        )
