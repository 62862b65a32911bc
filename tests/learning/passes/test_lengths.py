"""Sequences of different lengths: each sample learns as if it were alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_ottt import InputError, layer, learning, set_rule
from sj_ottt.neuron import OTTTLIFNode
from tests.networks import largest_error

LENGTHS = torch.tensor([2, 5, 3, 5])
RULES = ["ottt", "sltt", "ndot", "bptt"]


class Net(nn.Module):
    """Two neurons, the second fed back to the first."""

    def __init__(self, norm=False, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.body = layer.OTTTSequential(
            layer.Linear(6, 8),
            nn.BatchNorm1d(8) if norm else nn.Identity(),
            OTTTLIFNode(),
            layer.Dropout(dropout),
            layer.Linear(8, 8),
            OTTTLIFNode(tau=3.0),
        )
        self.head = layer.OTTTSequential(layer.Linear(8, 3))
        self.feedback = layer.Feedback(layer.Linear(8, 8, bias=False))
        self.feedback.connect(source=self.body[5], target=self.body[2])
        self.double()
        for parameter in self.body.parameters():
            nn.init.normal_(parameter, std=0.8)

    def forward(self, x):
        return self.head(self.body(x))


def batch():
    torch.manual_seed(1)
    return 2 * torch.rand(5, 4, 6).double(), torch.tensor([0, 1, 2, 0])


def gradients(net, x_seq, target, **kwargs):
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    loss, prediction = learning.train_step(net, optimizer, x_seq, target, **kwargs)
    grads = {name: p.grad.clone() for name, p in net.named_parameters()}
    return loss, prediction, grads


def one_by_one(net):
    """Each sample alone, without its padding; the means of losses and gradients."""
    x_seq, target = batch()
    alone = [
        gradients(net, x_seq[:length, n : n + 1], target[n : n + 1])
        for n, length in enumerate(LENGTHS.tolist())
    ]
    losses, predictions, grads = zip(*alone, strict=True)
    mean = {k: sum(g[k] for g in grads) / 4 for k in grads[0]}
    return sum(losses) / 4, torch.cat(predictions), mean


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("last", [False, True])
def test_each_sample_learns_as_if_it_were_alone(rule, last):
    net = set_rule(Net(), rule)
    net.prediction = "last" if last else "sum"
    loss, prediction, grads = gradients(net, *batch(), lengths=LENGTHS)
    expected_loss, expected, mean = one_by_one(net)
    assert all(g.norm() > 0 for g in grads.values())
    assert largest_error(grads, mean) < 1e-12
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(prediction, expected)
    torch.testing.assert_close(learning.predict(net, batch()[0], lengths=LENGTHS), expected)
    *_, without = gradients(net, *batch())
    assert largest_error(without, mean) > 1e-3  # padding that is seen


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_padding_has_no_influence(rule, update):
    """With batch norm and dropout too."""
    if (rule, update) == ("bptt", "online"):
        return
    x_seq, target = batch()
    other = x_seq.clone()
    for n, length in enumerate(LENGTHS.tolist()):
        other[length:, n] = 100.0
    results = []
    for x in (x_seq, other):
        net = set_rule(Net(norm=True, dropout=0.3), rule)
        torch.manual_seed(2)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        out = learning.train_step(net, optimizer, x, target, lengths=LENGTHS, update=update)
        results.append(
            [*out, *net.state_dict().values(), learning.predict(net, x, lengths=LENGTHS)]
        )
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_full_lengths_are_none():
    net = Net(norm=True)
    *_, expected = gradients(net, *batch())
    *_, grads = gradients(net, *batch(), lengths=torch.full((4,), 5))
    assert largest_error(grads, expected) == 0


def test_backward_steps_are_those_of_the_longest_sequence():
    net, lengths = Net(), LENGTHS.clamp(max=4)
    *_, expected = gradients(net, *batch(), lengths=lengths)
    *_, grads = gradients(net, *batch(), lengths=lengths, backward_steps=4)
    assert largest_error(grads, expected) == 0
    with pytest.raises(InputError, match="give 1 to 4"):
        gradients(net, *batch(), lengths=lengths, backward_steps=5)


def test_structures_are_parted_by_samples():
    class Heads(Net):
        def forward(self, x):
            spikes = self.body(x)
            return {"a": self.head(spikes), "b": (spikes, None)}

    x_seq, target = batch()
    seen = []

    def loss_fn(outputs, target):
        assert len(outputs["a"]) == len(outputs["b"][0]) == len(target["class"])
        seen.extend(target["names"])
        assert target["scale"] == 2.0
        return target["scale"] * F.cross_entropy(outputs["a"], target["class"])

    full = {"class": target, "names": list("wxyz"), "scale": 2.0}
    _, out, grads = gradients(Heads(), x_seq, full, loss_fn=loss_fn, lengths=LENGTHS)
    *_, plain = gradients(
        Net(), x_seq, target, loss_fn=lambda y, c: 2 * F.cross_entropy(y, c), lengths=LENGTHS
    )
    assert largest_error(grads, plain) < 1e-12
    assert out["a"].shape == (4, 3) and out["b"][0].shape == (4, 8) and out["b"][1] is None
    assert [seen.count(name) for name in "wxyz"] == LENGTHS.tolist()


def test_what_lengths_refuses():
    net, (x_seq, target) = Net(), batch()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def refuses(words, lengths=LENGTHS, trainer=optimizer, **kwargs):
        with pytest.raises(InputError, match=words):
            learning.train_step(net, trainer, x_seq, target, lengths=lengths, **kwargs)

    refuses("a whole number from 1 to 5", lengths=torch.tensor([0, 5, 5, 5]))
    refuses("a whole number from 1 to 5", lengths=torch.tensor([6, 5, 5, 5]))
    refuses("a whole number from 1 to 5", lengths=torch.tensor([5, 5]))
    refuses("a whole number from 1 to 5", lengths=LENGTHS.float())
    refuses("reset=False", reset=False)
    refuses("FPTT .* knows no lengths", trainer=learning.FPTT(optimizer, alpha=0.5))
    with pytest.raises(InputError, match="reset=False"):
        learning.predict(net, x_seq, lengths=LENGTHS, reset=False)
    net.head.append(nn.Flatten(0))
    with pytest.raises(InputError, match=r"give outputs \[N, ...\]"):
        learning.predict(net, x_seq, lengths=LENGTHS)
