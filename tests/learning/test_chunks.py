"""Several time steps together: the gradient, the state and the memory of the steps one by one."""

import copy
from itertools import product

import pytest
import timm
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sj_ottt import InputError, layer, learning, set_rule
from sj_ottt._ops import scan
from sj_ottt.learning.passes import chunks
from sj_ottt.neuron import NDOTLIFNode, OTTTLIFNode, OTTTParametricLIFNode, SLTTLIFNode
from tests.learning.networks import LTCNet, sequence, squared
from tests.networks import relative_error


class Residual(nn.Module):
    """Layers of ours and of PyTorch in a forward of one's own, with batch norm and dropout."""

    def __init__(self, node=OTTTLIFNode):
        super().__init__()
        self.first, self.norm, self.a = (
            nn.Conv2d(2, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            node(),
        )
        self.second, self.b = layer.WSConv2d(4, 4, 3, padding=1), node()
        self.drop, self.pool = layer.Dropout(0.3), nn.AvgPool2d(2)
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x):
        x = self.norm(self.first(x))
        x = x + self.second(self.drop(self.a(x)))
        return self.head(self.pool(self.b(x)).flatten(1))


def _chain(node):
    return layer.OTTTSequential(
        layer.Conv2d(2, 4, 3, padding=1),
        node(),
        layer.Scale(2.0),
        layer.MaxPool2d(2),
        layer.WSConv2d(4, 6, 3, padding=1),
        node(),
        layer.AvgPool2d(3),
        layer.Flatten(),
        layer.Linear(6, 3),
    )


def _their_last():
    return sj_neuron.LIFNode(2.0, v_threshold=0.01, surrogate_function=surrogate.ATan())


def _model(name):
    def make():
        model = timm.create_model(name, num_classes=3, in_chans=2, drop_rate=0.2)
        for p in model.parameters():
            nn.init.ones_(p) if p.dim() == 0 else None
        nn.init.normal_(model.fc.weight)
        return model

    return make


NETWORKS = {
    "own forward": Residual,
    "chain": lambda: _chain(OTTTLIFNode),
    "packed": lambda: _chain(lambda: OTTTLIFNode(trace_dtype="packed")),
    "hard reset": lambda: _chain(lambda: SLTTLIFNode(v_threshold=0.5)),
    "ndot code": lambda: _chain(lambda: NDOTLIFNode(variant="code")),
    "learnt tau": lambda: _chain(OTTTParametricLIFNode),
    "their last neuron": lambda: layer.OTTTSequential(*_chain(OTTTLIFNode), _their_last()),
    "VGG": _model("test_ottt_vgg"),
    "NF-ResNet": _model("test_ottt_nf_resnet"),
}


MODELS = ("VGG", "NF-ResNet")


def _build(name):
    torch.manual_seed(0)
    return NETWORKS[name]().double()


def _batch(steps=7, n=3, size=6):
    torch.manual_seed(1)
    return 3 * torch.rand(steps, n, 2, size, size).double(), torch.tensor([0, 2, 1])[:n]


def _trained(model, x, target, rule=None, lr=0.05, **kwargs):
    """What an update leaves: loss, prediction, gradients, buffers."""
    model = copy.deepcopy(model)
    if rule is not None:
        set_rule(model, rule)
    torch.manual_seed(2)
    optimizer = kwargs.pop("optimizer", torch.optim.SGD)(model.parameters(), lr)
    loss, out = learning.train_step(model, optimizer, x, target, **kwargs)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return [loss, out, *grads, *(b.double() for b in model.buffers())]


def _same(ours, theirs, tolerance=1e-9):
    assert len(ours) == len(theirs) > 3
    return max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True)) < tolerance


@pytest.mark.parametrize(
    ("name", "rule"),
    [*product(NETWORKS, [None, "bptt"]), *product(MODELS, ["sltt", "ndot"])],
)
def test_every_chunk_has_the_gradient_of_single_steps(name, rule):
    model = _build(name)
    x, target = _batch(size=32 if name in MODELS else 6)
    single = _trained(model, x, target, rule)
    assert all(tensor.norm() > 0 for tensor in single[:4])
    for chunk in (2, 3, 7, 10, "auto"):
        assert _same(_trained(model, x, target, rule, chunk=chunk), single), chunk


def test_control_a_trace_of_another_step_is_noticed(monkeypatch):
    model, (x, target) = _build("chain"), _batch()
    single = _trained(model, x, target)

    def shifted(*args):
        spike, stored = scan.lif_scan(*args)
        return spike, stored.roll(1, 0)

    rule = model[1].rule
    monkeypatch.setattr(
        OTTTLIFNode, "_scan", lambda self: lambda x, s, lif, fused: shifted(x, s, lif, lif.lam)
    )
    assert rule.name == "ottt"
    assert not _same(_trained(model, x, target, chunk=3), single, 1e-3)


@pytest.mark.parametrize(
    "how",
    [
        {"lengths": torch.tensor([7, 3, 5])},
        {"backward_steps": 3},
        {"clip_norm": 0.01},
        {"accumulation": (0, 2)},
        {"reset": False},
        {"optimizer": lambda p, lr: learning.FPTT(torch.optim.SGD(p, lr), alpha=0.1, parts=3)},
    ],
    ids=lambda how: next(iter(how)),
)
@pytest.mark.parametrize("name", ["chain", "own forward"])
def test_what_train_step_knows_goes_along(name, how):
    if name == "own forward" and how.get("lengths") is not None:
        pytest.skip("batch norm of one sample")
    model, (x, target) = _build(name), _batch()
    single = _trained(model, x, target, **how)
    for chunk in (2, 5, "auto"):
        assert _same(_trained(model, x, target, chunk=chunk, **how), single), chunk


def test_a_sequence_goes_on_where_the_last_chunk_has_left_it():
    model, (x, _) = _build("chain"), _batch()
    whole = learning.predict(model, x)
    learning.reset_state(model)
    parts = [learning.predict(model, part, reset=False, chunk=2) for part in (x[:3], x[3:])]
    assert relative_error(sum(parts), whole) < 1e-12


def test_an_average_of_the_weights_takes_part():
    found = []
    for chunk in (1, 3):
        model, (x, target) = _build("chain"), _batch()
        ema = AveragedModel(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        learning.train_step(model, optimizer, x, target, ema=ema, chunk=chunk)
        found.append([*ema.parameters()])
    assert _same(*found)


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_autocast_and_a_scaler(clip_norm):
    """Autocast leaves float64 as it is, so that all but its rounding is seen to the last digits."""
    model, (x, target) = _build("chain"), _batch()
    found = []
    for chunk in (1, 2, 3):
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        with torch.autocast("cpu", torch.bfloat16):
            options = {"chunk": chunk, "scaler": scaler, "clip_norm": clip_norm}
            found.append(_trained(model, x, target, **options))
    plain = _trained(model, x, target, clip_norm=clip_norm)
    assert all(_same(plain, each) for each in found)


def test_half_precision_rounds_more_often_step_by_step():
    """A chunk rounds the sum of its steps' weight gradients, and a step its own."""
    model = _build("chain").float()
    x, target = _batch()
    found = []
    for chunk in (1, 3):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(_trained(model, x.float(), target, chunk=chunk))
    assert _same([t.double() for t in found[0]], [t.double() for t in found[1]], 0.05)


def test_losses_and_outputs_are_those_of_each_step():
    model, (x, target) = _build("chain"), _batch()
    seen = {1: [], 3: []}
    for chunk, shapes in seen.items():

        def loss_fn(y, target, shapes=shapes):
            shapes.append(y.detach())
            return F.cross_entropy(y, target)

        _trained(model, x, target, loss_fn=loss_fn, chunk=chunk)
    assert [y.shape for y in seen[3]] == 7 * [(3, 3)]
    assert _same(seen[3], seen[1])


@pytest.mark.parametrize("chunk", [2, "auto"])
def test_predictions(chunk):
    for name in NETWORKS:
        model = _build(name)
        x, _ = _batch(size=32 if name in MODELS else 6)
        whole = learning.predict(model, x)
        assert relative_error(learning.predict(model, x, chunk=chunk), whole) < 1e-12
    lengths = torch.tensor([7, 3, 5])
    expected = learning.predict(_build("chain"), _batch()[0], lengths=lengths)
    found = learning.predict(_build("chain"), _batch()[0], lengths=lengths, chunk=3)
    assert relative_error(found, expected) < 1e-12


def test_networks_that_learn_through_time():
    x, target = sequence()
    for optimizer in (torch.optim.SGD, lambda p, lr: learning.FPTT(torch.optim.SGD(p, lr), 0.5)):
        kwargs = {"loss_fn": squared, "optimizer": optimizer}
        single = _trained(LTCNet(), x, target, **kwargs)
        assert _same(_trained(LTCNet(), x, target, chunk=2, **kwargs), single)


@pytest.mark.parametrize("name", ["chain", "packed", "hard reset", "ndot code", "learnt tau"])
@pytest.mark.parametrize("rule", [None, "bptt"])
def test_a_plain_loop_in_step_mode_m_has_the_gradient_of_the_rule(name, rule):
    """The loop of a user of SpikingJelly: all steps in one call, one backward pass."""
    x, target = _batch()
    model = _build(name)
    single = _trained(model, x, target, rule, lr=0.0, loss_fn=F.cross_entropy)
    if rule is not None:
        set_rule(model, rule)
    sj_functional.set_step_mode(model, "m")
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    for _ in range(2):
        sj_functional.reset_net(model)
        optimizer.zero_grad()
        losses, outputs = [], []
        for part in (x[:4], x[4:]) if rule is None else (x,):  # the state goes on
            out = model(part)
            assert out.shape == (len(part), 3, 3)
            loss = F.cross_entropy(out.flatten(0, 1), target.repeat(len(part)), reduction="sum")
            losses.append(loss / 21)
            losses[-1].backward()
            outputs.append(out.detach())
    grads = [p.grad for p in model.parameters()]
    assert _same([sum(losses), torch.cat(outputs).sum(0), *grads], single)


def test_step_mode_m_of_the_models():
    x, target = _batch(size=32)
    for name in ("VGG", "NF-ResNet"):
        model = _build(name)
        model.head_drop = nn.Identity()
        single = _trained(model, x, target, lr=0.0, loss_fn=F.cross_entropy)
        sj_functional.set_step_mode(model, "m")
        out = model(x)
        loss = F.cross_entropy(out.flatten(0, 1), target.repeat(7))
        loss.backward()
        assert _same([loss, out.sum(0), *(p.grad for p in model.parameters())], single)


class Wrong(nn.Module):
    """Networks whose steps cannot run together."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.synapse, self.node = kind, nn.Linear(4, 3), OTTTLIFNode()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        x = self.synapse(x)
        if self.kind == "buffer":
            self.calls += 1
        self.node(x)
        return x.mean() if self.kind == "output" else x


def _with_feedback():
    return timm.create_model("test_ottt_vggf", num_classes=3, in_chans=2)


def test_refusals():
    x, target = torch.rand(5, 2, 4), torch.tensor([0, 1])
    for kind, words in (
        ("buffer", "the model changes its buffer calls at every call"),
        ("output", r"the model gave an output of shape \[\] for 2 steps of 2 samples"),
    ):
        net = Wrong(kind)
        before = copy.deepcopy(net.state_dict())
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with pytest.raises(InputError, match=words):
            learning.train_step(
                net, optimizer, x, target, chunk=2, loss_fn=lambda y, c: y.square().mean()
            )
        del before["calls"]
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
        assert "forward" not in vars(net.node)
    net = Wrong("")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for kwargs, words in (
        ({"chunk": 0}, "chunk=0: give a whole number"),
        ({"chunk": True}, "chunk=True: give a whole number"),
        ({"chunk": "all"}, "chunk='all': give a whole number"),
        ({"memory_budget": 10}, "memory_budget=10, chunk=1: give a number of bytes"),
        ({"chunk": 2, "update": "online"}, 'chunk=2: update="online" updates the weights after'),
    ):
        with pytest.raises(InputError, match=words):
            learning.train_step(net, optimizer, x, target, **kwargs)
    learning.train_step(net, optimizer, x, target, chunk="auto", update="online")
    model, (images, classes) = _with_feedback(), _batch(size=32)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for run in (
        lambda chunk: learning.train_step(model, optimizer, images.float(), classes, chunk=chunk),
        lambda chunk: learning.predict(model, images.float(), chunk=chunk),
    ):
        with pytest.raises(InputError, match="chunk=2: the model has a Feedback"):
            run(2)
        run("auto")


def test_a_membrane_of_one_step_is_not_to_be_had():
    net, (x, target) = _build("chain"), _batch()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def loss_fn(y, target):
        return F.cross_entropy(y, target) + net[1].v.square().mean()

    learning.train_step(net, optimizer, x, target, loss_fn=loss_fn)
    with pytest.raises(InputError, match="v of OTTTLIFNode was asked for while several"):
        learning.train_step(net, optimizer, x, target, loss_fn=loss_fn, chunk=2)
    learning.predict(net, x, chunk=2, reset=False)
    assert net[1].v.shape == (3, 4, 6, 6)


def test_auto_keeps_to_its_bound(monkeypatch):
    net, (x, target) = _build("chain"), _batch(steps=40)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    sizes = []
    group = chunks.Group.run
    monkeypatch.setattr(
        chunks.Group, "run", lambda self, *a: (sizes.append(len(self.inputs)), group(self, *a))[1]
    )
    learning.train_step(net, optimizer, x, target, chunk="auto", memory_budget=10**9)
    assert sizes == [1, 1, 2, 36]
    sizes.clear()
    learning.train_step(net, optimizer, x, target, chunk="auto", memory_budget=10**9)
    assert sizes == [40]
    sizes.clear()
    learning.train_step(net, optimizer, x, target, chunk="auto", memory_budget=1)
    assert sizes == [1, 1, 2, *[1] * 36]
    sizes.clear()
    learning.train_step(net, optimizer, x, target, chunk="auto")
    assert 1 < max(sizes) < 40


def test_a_neuron_that_is_called_twice_per_step_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = layer.Linear(4, 4), layer.Linear(4, 3)
            self.node = OTTTLIFNode()

        def forward(self, x):
            return self.last(self.node(self.first(self.node(self.first(x)))))

    model, x, target = Twice().double(), torch.randn(4, 2, 4).double(), torch.tensor([0, 1])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    learning.train_step(model, optimizer, x, target)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(InputError, match="calls one OTTTLIFNode more than once"):
        learning.train_step(model, optimizer, x, target, chunk=2)
    assert all(map(torch.equal, before, model.parameters()))
    learning.train_step(model, optimizer, x, target)  # it is left as it was
