"""Several outputs at a time step, and which of the steps' outputs is the prediction."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sj_ottt import InputError, layer, learning, set_rule
from sj_ottt.learning.predict import predicts_last
from sj_ottt.neuron import OTTTLIFNode
from tests.networks import largest_error

RULES = ["ottt", "sltt", "ndot", "bptt"]


class Both(NamedTuple):
    logits: object
    rest: object


class Heads(nn.Module):
    """Two heads and the spikes, in one of several structures; or the sum of both heads."""

    def __init__(self, form=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = layer.OTTTSequential(layer.Linear(6, 8), OTTTLIFNode())
        self.a, self.b = layer.Linear(8, 3), layer.Linear(8, 3)
        self.form = form
        self.double()
        nn.init.normal_(self.body[0].weight)

    def forward(self, x):
        spikes = self.body(x)
        a, b = self.a(spikes), self.b(spikes)
        forms = {
            None: a + 2 * b,
            "tuple": (a, b),
            "list": [a, {"b": b, "spikes": spikes}],
            "named": Both(a, [b, None]),
            "dict": OrderedDict(a=a, b=b),
        }
        return forms[self.form]


def heads_of(out):
    """The heads a and b in any of the structures."""
    if isinstance(out, dict):
        return out["a"], out["b"]
    a, rest = out
    rest = rest["b"] if isinstance(rest, dict) else rest
    return a, rest[0] if isinstance(rest, list) else rest


def batch():
    torch.manual_seed(1)
    return 2 * torch.rand(5, 4, 6).double(), torch.tensor([0, 1, 2, 0])


def gradients(net, target, loss_fn, **kwargs):
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    result = learning.train_step(net, optimizer, batch()[0], target, loss_fn=loss_fn, **kwargs)
    grads = {name: p.grad.clone() for name, p in net.named_parameters()}
    assert all(g.norm() > 0 for g in grads.values())
    return *result, grads


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["tuple", "list", "named", "dict"])
def test_outputs_are_handed_whole_to_the_loss(rule, form):
    """Σ of linear losses of both heads is the loss of their sum."""
    net, plain = set_rule(Heads(form), rule), set_rule(Heads(), rule)
    _, target = batch()
    weight = torch.randn(4, 3).double()

    def loss_fn(outputs, target):
        a, b = heads_of(outputs)
        assert all(isinstance(y, torch.Tensor) for y in (a, b))
        return F.cross_entropy(a + 2 * b, target["y"][0]) + target["w"].mul(a).mean() * 0

    loss, out, grads = gradients(net, {"y": (target,), "w": weight}, loss_fn)
    expected_loss, expected, reference = gradients(plain, target, F.cross_entropy)
    assert largest_error(grads, reference) < 1e-12
    torch.testing.assert_close(loss, expected_loss)
    a, b = heads_of(out)
    torch.testing.assert_close(a + 2 * b, expected)
    assert type(out) is type(net(batch()[0][0])) and not a.requires_grad
    learning.reset_state(net)
    predicted = learning.predict(net, batch()[0])
    torch.testing.assert_close(heads_of(predicted), (a, b))
    if form == "list":  # a neuron's output counts its spikes
        counts = predicted[1]["spikes"]
        assert counts.max() > 1 and torch.equal(counts, counts.round())
    # The control: a loss of the first head alone leaves the second without a gradient.
    with pytest.raises(AttributeError):
        gradients(Heads(form), target, lambda y, c: F.cross_entropy(heads_of(y)[0], c))


def test_ottt_online_training_takes_structures():
    net, plain = Heads("dict"), Heads()
    x_seq, target = batch()
    x_seq, targets = x_seq.transpose(0, 1), target[:, None].expand(4, 5)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (net, plain)]
    loss, out = learning.ottt_online_training(
        net,
        optimizers[0],
        x_seq,
        [targets],
        lambda y, c: F.cross_entropy(y["a"] + 2 * y["b"], c[0]),
        False,
    )
    expected_loss, expected = learning.ottt_online_training(
        plain, optimizers[1], x_seq, targets, F.cross_entropy, False
    )
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(out["a"] + 2 * out["b"], expected)
    torch.testing.assert_close(net.state_dict(), plain.state_dict())


def test_what_is_refused_of_outputs():
    net, (x_seq, target) = Heads("tuple"), batch()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(InputError, match=r"gave a tuple .* give a loss_fn of your own"):
        learning.train_step(net, optimizer, x_seq, target)
    with pytest.raises(InputError, match="target of type tuple does not fit"):
        learning.train_step(Heads(), optimizer, x_seq, (target,))
    with pytest.raises(InputError, match="outputs or targets hold str: give tensors"):
        learning.predict(_Says("words"), x_seq)


class _Says(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x):
        return self.out


class _Wrapper(nn.Module):
    def __init__(self, inner, *others):
        super().__init__()
        self.inner, self.others = inner, nn.ModuleList(others) if others else None

    def forward(self, x):
        return self.inner(x)


def _last() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 3))
    net.prediction = "last"
    return net


@pytest.mark.parametrize(
    "wrap",
    [AveragedModel, _Wrapper, nn.DataParallel, torch.compile, lambda m: _Wrapper(_Wrapper(m))],
)
def test_a_wrapper_predicts_as_what_it_wraps(wrap):
    assert predicts_last(wrap(_last()))
    assert not predicts_last(wrap(nn.Sequential(nn.Linear(6, 3))))
    assert not predicts_last(nn.Linear(6, 3))


def test_an_ambiguous_prediction_is_refused():
    net = _Wrapper(_last(), nn.Linear(6, 3))
    with pytest.raises(InputError, match=r'Sequential predicts by its last .* = "sum" or "last"'):
        learning.predict(net, torch.rand(3, 2, 6))
    net.prediction = "last"
    assert predicts_last(net)
    net.prediction = "mean"
    with pytest.raises(InputError, match='prediction="mean" of _Wrapper'):
        predicts_last(net)
